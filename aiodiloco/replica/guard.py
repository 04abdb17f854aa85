"""The dead man's switch: a replica whose driver is gone ends itself, for nobody else would."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
from anyio.from_thread import start_blocking_portal

from aiodiloco.errors import LeaseExpiredError, StoreError
from aiodiloco.lease import LeaseDocument, LeaseState, LeaseTerms, watch_lease
from aiodiloco.store import open_store

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from anyio.from_thread import BlockingPortal

    from aiodiloco.store import Store

__all__ = ["LeaseGuard"]

_log = logging.getLogger(__name__)

_OPEN_AGAIN_S = 1.0


class LeaseGuard:
    """Watches the lease from a thread and an event loop of its own, so that no training step can hold it up.

    Once the driver is gone, `on_expired` is called, and has half a beat to bring the training to its end. Then the
    process is ended where it stands, with the same exit code: a replica in the middle of a long step costs money too.

    Args:
        uri: Of the run.
        terms: On which its replicas live.
        rank: This replica's.
        incarnation: This process's, or None if it was not told; a rank that was started again ends its older processes.
        on_expired: Called in the guard's thread; must not block.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        terms: LeaseTerms,
        *,
        rank: int,
        incarnation: int | None,
        on_expired: Callable[[LeaseExpiredError], object],
    ) -> None:
        self._uri = uri
        self._terms = terms
        self._rank = rank
        self._incarnation = incarnation
        self._on_expired = on_expired
        self._thread: AbstractContextManager[BlockingPortal] | None = None
        self._watch: concurrent.futures.Future[None] | None = None

    def start(self) -> None:
        """Begin to watch. Takes milliseconds."""
        self._thread = start_blocking_portal(name="aiodiloco-lease")
        self._watch = self._thread.__enter__().start_task_soon(self._run)

    def stop(self) -> None:
        """Stop watching, and disarm. Idempotent; takes milliseconds."""
        thread, self._thread = self._thread, None
        if thread is not None and self._watch is not None:
            self._watch.cancel()
            thread.__exit__(None, None, None)

    async def _run(self) -> None:
        why = await self._end()
        error = LeaseExpiredError(f"rank {self._rank} ends itself: {why}")
        _log.error("%s", error)
        self._on_expired(error)
        await anyio.sleep(self._terms.beat_s / 2)
        sys.stderr.write(f"aiodiloco: {error}; it did not end in time, so the process is ended now\n")
        sys.stderr.flush()
        os._exit(LeaseExpiredError.exit_code)

    async def _end(self) -> str:
        """Return why this replica must end, once it must. What the watch cannot know of counts as silence."""
        failing_since: float | None = None
        while True:
            began = anyio.current_time()
            try:
                return await self._wait_for_end()
            except Exception as exc:  # noqa: BLE001 - a guard that ends guards nothing
                _log.exception("rank %d cannot watch its driver's lease, and tries again", self._rank)
                failing_since = began if failing_since is None else failing_since
                if anyio.current_time() - failing_since >= self._terms.ttl_s:
                    return f"its driver's lease cannot be watched: {type(exc).__name__}: {exc}"
            await anyio.sleep(min(self._terms.beat_s / 2, _OPEN_AGAIN_S))

    async def _wait_for_end(self) -> str:
        async with AsyncExitStack() as stack:
            store = await self._open(stack)
            seen = None if store is None else await watch_lease(store, self._terms, until=self._is_unwanted)
        if seen is None or seen.is_stale:
            return (
                f"nothing was heard of the driver for {self._terms.ttl_s:g} s (it is gone, or the store cannot be "
                "reached); launch with lease=None for replicas that go on without one"
            )
        assert seen.document is not None
        if seen.document.state is LeaseState.ended:
            return "the run is over"
        return f"the rank was started again, as incarnation {seen.document.incarnations[self._rank]}"

    async def _open(self, stack: AsyncExitStack) -> Store | None:
        """Return the open store, or None if it could not be opened for as long as a driver may be silent."""
        with anyio.move_on_after(self._terms.ttl_s):
            while True:
                try:
                    return await stack.enter_async_context(open_store(self._uri))
                except StoreError as exc:
                    _log.warning("rank %d cannot open the store to watch its driver's lease: %s", self._rank, exc)
                await anyio.sleep(min(self._terms.beat_s / 2, _OPEN_AGAIN_S))
        return None

    def _is_unwanted(self, document: LeaseDocument) -> bool:
        """Whether the driver says that this process should not be running."""
        latest = document.incarnations.get(self._rank, 0)
        is_superseded = self._incarnation is not None and latest > self._incarnation
        return document.state is LeaseState.ended or is_superseded
