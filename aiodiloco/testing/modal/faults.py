"""Faults to inject, by the name of the RPC that they strike."""

from __future__ import annotations

import dataclasses
import fnmatch
import threading
from typing import Literal

__all__ = ["Fault", "FaultPlan"]

Sender = Literal["client", "container", "any"]
Kind = Literal["latency", "unavailable", "lost_response", "hang", "throttle"]


@dataclasses.dataclass
class Fault:
    """One fault.

    Attributes:
        kind: What happens.
        rpc: Name of the RPC, or a pattern such as `"Function*"`.
        left: How many more requests it strikes; None: all.
        sender: Whose requests it strikes.
        seconds: The latency, or the wait that a throttled client is told.
        spared: How many requests it still lets pass first.
        struck: How many requests it has struck.
    """

    kind: Kind
    rpc: str
    left: int | None
    sender: Sender
    seconds: float | None = None
    spared: int = 0
    struck: int = 0

    def strikes(self, rpc: str, sender: str) -> bool:
        """Return whether this request is to be struck."""
        return self.left != 0 and self.sender in (sender, "any") and fnmatch.fnmatchcase(rpc, self.rpc)


class FaultPlan:
    """The faults in force. Its methods may be called from any thread, and take effect with the next request."""

    def __init__(self, known_rpcs: frozenset[str]) -> None:
        self._known = known_rpcs
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def latency(self, seconds: float, rpc: str = "*", *, times: int | None = None, sender: Sender = "client") -> Fault:
        """Delay requests: half of the time on the way in, half on the way out.

        A request that its sender abandons on the way in is carried out all the same.
        """
        return self._add(Fault("latency", rpc, times, sender, seconds))

    def unavailable(self, rpc: str, *, times: int | None = None, sender: Sender = "client", after: int = 0) -> Fault:
        """Refuse requests with UNAVAILABLE, not carried out, but for the first `after`."""
        return self._add(Fault("unavailable", rpc, times, sender, spared=after))

    def lost_response(self, rpc: str, *, times: int | None = 1, sender: Sender = "client") -> Fault:
        """Carry requests out, and answer UNAVAILABLE instead of the response."""
        return self._add(Fault("lost_response", rpc, times, sender))

    def hang(self, rpc: str, *, times: int | None = None, sender: Sender = "client") -> Fault:
        """Never answer requests, nor carry them out; one that hangs goes on to hang after `clear`."""
        return self._add(Fault("hang", rpc, times, sender))

    def throttle(
        self, rpc: str, *, times: int | None = None, retry_after_s: float | None = None, sender: Sender = "client"
    ) -> Fault:
        """Refuse requests with RESOURCE_EXHAUSTED.

        Args:
            rpc: Name of the RPC, or a pattern.
            times: How many requests; None: all.
            retry_after_s: Tell the client to try again after so long, which it does without limit. None: say nothing,
                and the client raises.
            sender: Whose requests.
        """
        return self._add(Fault("throttle", rpc, times, sender, retry_after_s))

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._faults.clear()

    def strike(self, rpc: str, sender: str) -> list[Fault]:
        """Return the faults that strike this request, in the order in which they were added, and count them."""
        with self._lock:
            struck = [fault for fault in self._faults if fault.strikes(rpc, sender)]
            for fault in [fault for fault in struck if fault.spared]:
                fault.spared -= 1
                struck.remove(fault)
            for fault in struck:
                fault.struck += 1
                if fault.left is not None:
                    fault.left -= 1
            return struck

    def _add(self, fault: Fault) -> Fault:
        if not fnmatch.filter(self._known, fault.rpc):
            raise ValueError(
                f"no RPC of Modal's control plane matches {fault.rpc!r}: try 'FunctionMap', or '*' for all"
            )
        if fault.left is not None and fault.left < 1:
            raise ValueError(f"times={fault.left}: give at least 1, or None for every request")
        with self._lock:
            self._faults.append(fault)
        return fault
