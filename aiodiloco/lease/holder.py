"""The driver's side: win a generation, beat, and notice when someone else has taken over."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import anyio

from aiodiloco.errors import KeyNotFoundError, StoreError
from aiodiloco.lease.document import LeaseDocument, LeaseState, LeaseTerms, lease_key, read_generation

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = ["LeaseHolder", "Report"]

_log = logging.getLogger(__name__)

_ASK_BOUND_S = 5.0

Clock: TypeAlias = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a beat says of the run, so that the next driver can go on from there; see `LeaseDocument`."""

    elapsed_s: float = 0.0
    spent_gpu_s: float = 0.0
    incarnations: Mapping[int, int] = dataclasses.field(default_factory=dict, hash=False)


class LeaseHolder:
    """One generation, held by this process. Made by `acquire`.

    Attributes:
        generation: The number that was won.
        deposed: True once a higher generation was seen: somebody else drives, and this process must touch nothing.
    """

    def __init__(
        self, store: Store, terms: LeaseTerms, generation: int, report: Callable[[], Report], clock: Clock
    ) -> None:
        self.generation = generation
        self.deposed = False
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        self._store = store
        self._terms = terms
        self._report = report
        self._clock = clock
        self._beat = 0
        self._fresh_until = clock()
        self._turn = anyio.Lock()

    @classmethod
    async def acquire(
        cls,
        store: Store,
        terms: LeaseTerms,
        generation: int,
        report: Callable[[], Report],
        *,
        clock: Clock | None = None,
    ) -> LeaseHolder | None:
        """Return the holder of this generation if this process won it, else None.

        Args:
            store: An open store, rooted at the run.
            terms: How it will beat.
            generation: One more than the one that was seen to be stale; 1 for a run that is new.
            report: Asked at every beat.
            clock: Monotonic seconds; None is `time.monotonic`.
        """
        clock = clock or time.monotonic
        holder = cls(store, terms, generation, report, clock)
        began = clock()
        document = holder._document(LeaseState.held)
        if not await store.put_if_absent(lease_key(generation), document.to_json()):
            # A reply may have been lost, and the request repeated underneath.
            found = await read_generation(store, generation)
            if found is None or found.holder != holder.holder:
                return None
        holder._fresh_until = began + terms.ttl_s
        return holder

    async def beat(self, state: LeaseState = LeaseState.held) -> bool:
        """Say once more that the driver lives; return False, having written nothing, if it was deposed.

        Raises:
            StoreError: neither is known.
        """
        async with self._turn:
            began = self._clock()
            if self.deposed or await self._exists(self.generation + 1):
                self.deposed = True
                return False
            self._beat += 1
            await self._store.put(lease_key(self.generation), self._document(state).to_json())
            self._fresh_until = began + self._terms.ttl_s
            return True

    async def confirm(self) -> bool:
        """Return whether this process still drives; asks the store only if someone else could have taken over.

        To be asked before each deed. Nobody can find the lease stale sooner than one time to live after the last beat
        *began*, so until then the answer needs no request. A process that was stopped for longer has to look.

        Raises:
            StoreError: it cannot be known.
        """
        if not self.deposed and self._clock() < self._fresh_until:
            return True
        return await self.beat()

    async def ask(self) -> bool | None:
        """Return what `confirm` does, or None if the store does not say so within 5 s.

        To be asked before replicas are ended: then only a clear no should hold one back, for an orphan is worse than a
        replica that ends too early.
        """
        with anyio.move_on_after(_ASK_BOUND_S):
            try:
                return await self.confirm()
            except StoreError as exc:
                _log.warning("cannot find out whether generation %d still drives: %s", self.generation, exc)
        return None

    async def keep_beating(self, after_beat: Callable[[], object]) -> None:
        """Beat until deposed. A store that fails is asked again at the next beat.

        Args:
            after_beat: Called after each beat, and when the lease was lost.
        """
        while not self.deposed:
            await anyio.sleep(self._terms.beat_s)
            with anyio.move_on_after(self._terms.ttl_s / 2) as scope:
                try:
                    await self.beat()
                except StoreError as exc:
                    _log.warning("beat %d of generation %d failed: %s", self._beat, self.generation, exc)
            if scope.cancelled_caught:
                _log.warning("the store took beat %d for more than %g s", self._beat, self._terms.ttl_s / 2)
            after_beat()

    def _document(self, state: LeaseState) -> LeaseDocument:
        fields = dataclasses.asdict(self._report())
        return LeaseDocument(self.generation, self._beat, self.holder, self._terms, **fields, state=state)

    async def _exists(self, generation: int) -> bool:
        try:
            await self._store.get(lease_key(generation))
        except KeyNotFoundError:
            return False
        return True
