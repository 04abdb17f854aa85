"""What replicas were told by this process: Modal does not say that a call ended because it was cancelled."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict

from aiodiloco.executors.modal.outcome import Asked

__all__ = ["Orders"]

_MOST = 20_000  # Modal runs a thousand at once; of one that was told so long ago, all should be known


@dataclasses.dataclass
class _Order:
    """The strongest that a replica was told, and whether Modal has accepted that it shall end."""

    asked: Asked = Asked.nothing
    is_accepted: bool = False


class Orders:
    """Remembers what was asked of the replicas that were told last. From any thread.

    Args:
        most: Of how many. Of one that is forgotten, a row says that it was cancelled from elsewhere.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._orders: OrderedDict[str, _Order] = OrderedDict()

    def note(self, call_id: str, what: Asked) -> None:
        """Remember what a replica is going to be told."""
        with self._lock:
            order = self._orders.setdefault(call_id, _Order())
            order.asked = max(order.asked, what)
            self._orders.move_to_end(call_id)
            if len(self._orders) > self._most:
                self._orders.popitem(last=False)

    def note_accepted(self, call_id: str) -> None:
        """Remember that Modal has accepted an order."""
        with self._lock:
            if call_id in self._orders:
                self._orders[call_id].is_accepted = True

    def asked_of(self, call_id: str) -> Asked:
        """Return the strongest that was asked of a replica."""
        order = self._orders.get(call_id)
        return Asked.nothing if order is None else order.asked

    def is_accepted(self, call_id: str) -> bool:
        """Return whether Modal has accepted that it shall end."""
        order = self._orders.get(call_id)
        return order is not None and order.is_accepted
