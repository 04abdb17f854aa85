"""Bringing async training to its end when the driver is gone."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Self

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import from_thread

from aiodiloco.lease import read_terms
from aiodiloco.replica.guard import LeaseGuard

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from aiodiloco.errors import LeaseExpiredError
    from aiodiloco.store import Store

__all__ = ["end_with_lease"]


class end_with_lease:  # noqa: N801 - a context manager that is used like a function
    """Cancels what runs inside when the lease on the run expires, and raises LeaseExpiredError from it.

    Does nothing where no lease binds the replicas.

    Args:
        uri: Of the run.
        store: The same, open.
        rank: This replica's.
        incarnation: This process's, if it was told.
    """

    def __init__(self, uri: str | os.PathLike[str], store: Store, *, rank: int, incarnation: int | None) -> None:
        self._uri = uri
        self._store = store
        self._rank = rank
        self._incarnation = incarnation
        self._scope = anyio.CancelScope()
        self._error: LeaseExpiredError | None = None
        self._guard: LeaseGuard | None = None

    async def __aenter__(self) -> Self:
        terms = await read_terms(self._store)
        if terms is not None:
            self._token = anyio.lowlevel.current_token()
            self._guard = LeaseGuard(
                self._uri, terms, rank=self._rank, incarnation=self._incarnation, on_expired=self._expire
            )
            self._guard.start()
        self._scope.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        suppress = self._scope.__exit__(exc_type, exc, tb)
        if self._guard is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._guard.stop)
        if self._error is not None and (suppress or isinstance(exc, Exception)):
            raise self._error from (exc if isinstance(exc, Exception) else None)
        return bool(suppress)

    def _expire(self, error: LeaseExpiredError) -> None:
        self._error = error
        threading.Thread(target=self._cancel, daemon=True).start()  # the loop may be busy for long

    def _cancel(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone
            from_thread.run_sync(self._scope.cancel, token=self._token)
