"""A thread and an event loop for an all-reduce that is used from sync code, for as long as the program lives."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import anyio
from anyio.from_thread import BlockingPortal

from aiodiloco.collective.membership import BEAT_S, beat
from aiodiloco.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodiloco.collective import ObjectStoreAllReduce

__all__ = ["Network"]

_LOOK_S = 0.5
_LEAVE_BOUND_S = 5.0

_log = logging.getLogger(__name__)


class Network:
    """Holds an all-reduce open in a thread of its own, and shows that this replica lives.

    The thread ends with the program, should nobody call `close`. anyio's own portals are not for that: the interpreter
    waits for their threads before it says that it ends.

    Attributes:
        portal: The way into the thread's event loop.

    Raises:
        What entering the all-reduce raises.
    """

    def __init__(self, all_reduce: ObjectStoreAllReduce) -> None:
        self._all_reduce = all_reduce
        self._opened: concurrent.futures.Future[BlockingPortal] = concurrent.futures.Future()
        self._thread = threading.Thread(target=anyio.run, args=(self._run,), name="aiodiloco-network", daemon=True)
        self._thread.start()
        self.portal = self._opened.result()

    def close(self) -> None:
        """Cancel what is under way, leave the all-reduce and end the thread. A second call does nothing."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ends by itself
                self.portal.call(self.portal.stop, True)
            self._thread.join()

    async def _run(self) -> None:
        try:
            async with self._all_reduce, self._alive(), BlockingPortal() as portal, anyio.create_task_group() as tg:
                tg.start_soon(_end_with_program, portal)
                self._opened.set_result(portal)
                await portal.sleep_until_stopped()
                tg.cancel_scope.cancel()
        except BaseException as exc:
            if self._opened.done():
                raise
            self._opened.set_exception(exc)

    @contextlib.asynccontextmanager
    async def _alive(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._beat_forever)
            try:
                yield
            finally:
                tg.cancel_scope.cancel()
                with anyio.move_on_after(_LEAVE_BOUND_S, shield=True), contextlib.suppress(StoreError):
                    await beat(self._all_reduce.store, self._all_reduce.member, 0, left=True)

    async def _beat_forever(self) -> None:
        number = 0
        while True:
            try:
                await beat(self._all_reduce.store, self._all_reduce.member, number)
            except StoreError as exc:
                _log.warning("no heartbeat of rank %d: %s", self._all_reduce.rank, exc)
            number += 1
            await anyio.sleep(BEAT_S)


async def _end_with_program(portal: BlockingPortal) -> None:
    """Stop the event loop when the main thread has ended: the interpreter waits for its worker threads."""
    while threading.main_thread().is_alive():  # noqa: ASYNC110 - it tells nobody when it ends
        await anyio.sleep(_LOOK_S)
    await portal.stop(cancel_remaining=True)
