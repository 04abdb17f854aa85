"""One client for one event loop, and the rules under which requests use it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from aiodiloco.errors import StoreUnavailableError
from aiodiloco.store.s3.client import MAX_PAUSE_S, prepare_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from aiodiloco.store.s3.location import S3Location

__all__ = ["Connection", "Slot"]

_CLOSE_S = 5.0


class Slot:
    """A turn at the network, which ends when nothing has moved for too long.

    The only bound on an upload that the server stops reading: the HTTP session's own timeouts begin when all is sent.
    """

    def __init__(self, scope: anyio.CancelScope, attempt_s: float, max_attempts: int) -> None:
        self._scope = scope
        self._attempt_s = attempt_s
        scope.deadline = anyio.current_time() + attempt_s * max_attempts

    def moved(self) -> None:
        """Put the end off, since bytes moved."""
        self._scope.deadline = anyio.current_time() + self._attempt_s


class Connection:
    """The client of one open store.

    Args:
        location: Bucket and settings.
        timeout_s: Seconds without a byte until a request is given up, to be tried again.
        max_attempts: How often botocore sends one request at most.
        max_put_bytes: Above this, objects are written in parts.
        http_session: The session class that carries requests; None is `http.DirectSession`.

    Attributes:
        client: For all requests but those for objects' contents.
        objects: What puts and gets objects: the client or, at less cost, `http.DirectCalls`.
    """

    def __init__(
        self,
        location: S3Location,
        *,
        timeout_s: float,
        max_attempts: int,
        max_put_bytes: int,
        http_session: type[Any] | None,
    ) -> None:
        self.location = location
        self.max_put_bytes = max_put_bytes
        self.client: Any = None  # aiobotocore makes its client classes at run time, without types
        self.objects: Any = None
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._http_session = http_session
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()
        self._turns = anyio.Semaphore(location.concurrency, fast_acquire=True)

    def key(self, key: str) -> str:
        """Return the name in the bucket of `key`, or of the front part of one."""
        return f"{self.location.prefix}/{key}" if self.location.prefix else key

    def target(self, key: str) -> dict[str, str]:
        """Return what names the object in a request."""
        return {"Bucket": self.location.bucket, "Key": self.key(key)}

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for a turn, one of `concurrency` at a time, and hold it for one request and its body.

        Raises:
            RuntimeError: the store was opened in another event loop.
            StoreUnavailableError: nothing moved for longer than all timeouts, retries and pauses take.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self.location.uri} was opened in another event loop: open a store in each")
        attempt_s = 2 * self._timeout_s + MAX_PAUSE_S  # to connect, to wait, and to pause before the next
        async with self._turns:
            with anyio.CancelScope() as scope:
                yield Slot(scope, attempt_s, self._max_attempts)
            if scope.cancelled_caught:
                raise StoreUnavailableError(
                    f"nothing moved for {attempt_s:g} s or longer: is the network down or the server stuck?"
                )

    @asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """Make the client; close it again if the body, which tries it, fails."""
        create = await to_thread.run_sync(self._prepare)
        async with AsyncExitStack() as stack:
            self.client = await stack.enter_async_context(create())
            self.objects = self._direct_calls()
            self._loop = asyncio.get_running_loop()
            yield
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Close the client and its connections."""
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await self._stack.aclose()

    def _direct_calls(self) -> Any:  # noqa: ANN401 - the client has no type
        from aiodiloco.store.s3.http import DirectCalls

        # A direct call comes before the client's own attempts: where there may be one attempt only, it is the client's.
        direct = self._max_attempts > 1 and not self.location.checksums
        return DirectCalls(self.client) if direct else self.client

    def _prepare(self) -> Callable[[], AbstractAsyncContextManager[Any]]:
        return prepare_client(
            self.location,
            timeout_s=self._timeout_s,
            max_attempts=self._max_attempts,
            http_session=self._http_session,
        )
