"""When to stop waiting for an owner's part of the mean, and form it in its place."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Owners", "takes_over_at"]

_LEAST_S = 10.0
_SHARE_OF_ROUND = 0.5


def takes_over_at(*, seen_at: float, round_s: float, turn: int) -> float:
    """Return when a reader forms a chunk in its owner's place.

    Ten seconds after the last sign of the owner, or half as long as the round took so far, whichever is more: an owner
    publishes as contributions come in, so once all are there it is nearly done. The next member in the ring goes
    first; each one after it waits as long again, so that a dead owner costs one replica some work, not all.

    Args:
        seen_at: When the owner last published something, or when the round was decided.
        round_s: How long the round took until it was decided.
        turn: 1 for the first to step in.
    """
    return seen_at + turn * max(_LEAST_S, _SHARE_OF_ROUND * round_s)


class Owners:
    """What one reader knows of the owners of a round, by position.

    Before the round is decided nobody is given up: contributions may still be under way.

    Args:
        num_members: How many owners there are.
        position: The reader's own; None if it is no member, and comes last.
    """

    def __init__(self, num_members: int, position: int | None) -> None:
        self._num_members = num_members
        self._position = position
        self._began_at = anyio.current_time()
        self._decided_at = math.inf
        self._seen: dict[int, float] = {}
        self._gone: set[int] = set()
        self._waiting: dict[anyio.CancelScope, int] = {}

    def decided(self) -> None:
        """Note that the round is decided: from now on owners have no excuse."""
        self._decided_at = min(self._decided_at, anyio.current_time())
        for scope, owner in self._waiting.items():
            scope.deadline = self._deadline(owner)

    def published(self, owner: int) -> None:
        """Note a sign of life."""
        self._seen[owner] = anyio.current_time()

    def is_gone(self, owner: int) -> bool:
        """Return whether it is this reader's turn to do the owner's work. Once gone, an owner stays gone."""
        if anyio.current_time() >= self._deadline(owner):
            self._gone.add(owner)
        return owner in self._gone

    @contextlib.contextmanager
    def waiting(self, owner: int) -> Iterator[None]:
        """Bound what is inside by the time the owner has; leaves early, without an error, when that is over."""
        with anyio.CancelScope(deadline=self._deadline(owner)) as scope:
            self._waiting[scope] = owner
            try:
                yield
            finally:
                del self._waiting[scope]

    def _deadline(self, owner: int) -> float:
        if math.isinf(self._decided_at):
            return math.inf
        turn = self._num_members if self._position is None else (self._position - owner) % self._num_members
        seen_at = max(self._decided_at, self._seen.get(owner, self._decided_at))
        return takes_over_at(seen_at=seen_at, round_s=self._decided_at - self._began_at, turn=turn)
