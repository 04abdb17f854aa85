"""The others' side: tell from beats, and one's own clock alone, whether the driver lives."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.lease.document import LeaseDocument, LeaseTerms, read_generation, read_lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.store import Store

__all__ = ["Silence", "Vacancy", "watch_lease"]

_log = logging.getLogger(__name__)


class Silence:
    """How long a lease has not moved, as far as this process has looked.

    Only time in which it looked counts: a process that was stopped, or whose event loop was blocked, knows nothing of
    the time in between. So no gap between two looks counts for more than a look can take.
    """

    def __init__(self, terms: LeaseTerms, now: float) -> None:
        self._ttl_s = terms.ttl_s
        self._longest_gap_s = 1.5 * terms.beat_s
        self._mark: tuple[int, int] | None = None
        self._last_look = now
        self.silent_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the lease is stale, if it does not move."""
        return max(0.0, self._ttl_s - self.silent_s)

    def looked(self, now: float, mark: tuple[int, int] | None) -> None:
        """Note a look that ended at `now` and saw `mark`; None if nothing could be seen."""
        self.silent_s += min(now - self._last_look, self._longest_gap_s)
        self._last_look = now
        if mark is not None and mark != self._mark:
            self._mark = mark
            self.silent_s = 0.0


@dataclasses.dataclass(frozen=True)
class Vacancy:
    """What `watch_lease` saw in the end.

    Attributes:
        document: The last beat; None if there never was one, or none could be read.
        is_stale: The lease did not move for its time to live; else `document` is what was waited for.
        silent_s: Seconds it had not moved.
    """

    document: LeaseDocument | None
    is_stale: bool
    silent_s: float


async def watch_lease(
    store: Store,
    terms: LeaseTerms,
    *,
    until: Callable[[LeaseDocument], bool],
    must_see: bool = False,
    clock: Callable[[], float] | None = None,
) -> Vacancy:
    """Return once the lease is stale, or a beat is what the caller waits for.

    A store that fails or does not answer shows no beats. Looks twice per beat: a stale lease is noticed half a beat
    after its time to live at the latest.

    Args:
        store: An open store, rooted at the run.
        terms: The run's.
        until: Whether a beat ends the watch.
        must_see: The lease is stale only if the last look succeeded, as it must be before one takes the driver's
            place: while one's own way to the store is broken, the driver may beat.
        clock: Monotonic seconds; None is `time.monotonic`.

    Raises:
        StoreError: `must_see`, and no look succeeded for the time to live.
    """
    clock = clock or time.monotonic
    silence, blindness, watcher = Silence(terms, clock()), Silence(terms, clock()), _Watcher(store)
    while True:
        left_s = silence.left_s or terms.beat_s  # 0 only for who must see, and did not
        with anyio.move_on_after(min(terms.beat_s, left_s)):
            await watcher.look()
        document = watcher.latest
        silence.looked(clock(), watcher.seen)
        blindness.looked(clock(), watcher.answered)
        if document is not None and watcher.seen is not None and until(document):
            return Vacancy(document, is_stale=False, silent_s=silence.silent_s)
        if not silence.left_s and not (must_see and watcher.answered is None):
            return Vacancy(document, is_stale=True, silent_s=silence.silent_s)
        if must_see and not blindness.left_s:
            raise StoreError(f"the lease of {store.uri} could not be read for {terms.ttl_s:g} s: is the network down?")
        await anyio.sleep(min(terms.beat_s / 2, silence.left_s or terms.beat_s))


class _Watcher:
    """Finds the latest beat, with one request for as long as the driver stays the same and beats.

    Attributes:
        latest: The last beat that was seen, if any.
        seen: Its mark if the last look showed it, else None.
        answered: Counts the looks that succeeded, also those that found nothing; None if the last one did not.
    """

    def __init__(self, store: Store) -> None:
        self.latest: LeaseDocument | None = None
        self.seen: tuple[int, int] | None = None
        self.answered: tuple[int, int] | None = None
        self._num_looks = 0
        self._store = store

    async def look(self) -> None:
        """Look once. A store that fails shows nothing."""
        self.seen = self.answered = None
        self._num_looks += 1
        try:
            found = await self._find(self.latest)
        except StoreError as exc:
            _log.warning("cannot read the lease of %s: %s", self._store.uri, exc)
            return
        self.answered = (0, self._num_looks)
        if found is not None:
            self.latest, self.seen = found, found.mark

    async def _find(self, latest: LeaseDocument | None) -> LeaseDocument | None:
        if latest is None:
            return await read_lease(self._store)
        found = await read_generation(self._store, latest.generation)
        if found is None or found.mark == latest.mark:  # silent, so perhaps replaced; nobody beats for a lost lease
            newer = await read_generation(self._store, latest.generation + 1)
            return await self._find(newer) if newer is not None else found
        return found
