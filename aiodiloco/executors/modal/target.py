"""What Modal is asked to run for a replica."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

import modal
import modal.exception

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiodiloco.executors.port import SpawnRequest
    from aiodiloco.records import JSON

__all__ = ["OWN_TIMEOUT_S", "Replica", "Target", "Variants", "check_at_most_a_day"]

_LONGEST_TIMEOUT_S = 24 * 3600.0

OWN_TIMEOUT_S = _LONGEST_TIMEOUT_S + 1
"""Stands for "as the function itself says": no caller can ask for it, for Modal allows 24 hours."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """A call to make.

    Attributes:
        function: The Modal function, on Modal already.
        kwargs: Its keyword arguments.
    """

    function: modal.Function[..., Any, Any]
    kwargs: Mapping[str, JSON]


class Target(Protocol):
    """Knows which Modal function is called for a replica, and with what."""

    def check(self, request: SpawnRequest) -> None:
        """Raise ValueError, naming the remedy, if `request` could never run. No I/O."""
        ...

    async def prepare(self, request: SpawnRequest) -> None:
        """See to it that the function is on Modal. Called once before the replicas of a launch are spawned."""
        ...

    def replica(self, request: SpawnRequest) -> Replica:
        """Return the call that starts this replica. Only after `prepare`."""
        ...


class Variants:
    """A Modal function with other GPUs or timeouts, each made once: every variant has its own pool of containers."""

    def __init__(self, function: modal.Function[..., Any, Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._made: dict[tuple[str | None, int | None], modal.Function[..., Any, Any]] = {(None, None): function}

    def check(self, gpu: str | None, timeout_s: float) -> None:
        """Raise ValueError if Modal has no such GPU or timeout."""
        if timeout_s != OWN_TIMEOUT_S:
            check_at_most_a_day(timeout_s)
        try:
            self.get(gpu, timeout_s)
        except modal.exception.InvalidError as exc:
            raise ValueError(f"gpu={gpu!r}: {exc}") from exc

    def get(self, gpu: str | None, timeout_s: float) -> modal.Function[..., Any, Any]:
        """Return the function with this GPU, bounded to `timeout_s` rounded up to whole seconds.

        None and OWN_TIMEOUT_S leave what the function itself says.
        """
        key = (gpu, None if timeout_s == OWN_TIMEOUT_S else math.ceil(timeout_s))
        with self._lock:
            if key not in self._made:
                self._made[key] = self._function.with_options(gpu=key[0], timeout=key[1])
            return self._made[key]


def check_at_most_a_day(timeout_s: float) -> float:
    """Return `timeout_s`, or raise ValueError if it is longer than Modal allows."""
    if timeout_s > _LONGEST_TIMEOUT_S:
        raise ValueError(
            f"timeout={timeout_s:g}: Modal ends functions after 24 hours; give {_LONGEST_TIMEOUT_S:g} or less"
        )
    return timeout_s
