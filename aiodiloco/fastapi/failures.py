"""This library's errors as HTTP answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from fastapi.routing import APIRoute

from aiodiloco.errors import AiodilocoError, LaunchError, RunConflictError, RunNotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi import Request, Response

__all__ = ["TranslatingRoute"]

_STATUSES: tuple[tuple[type[AiodilocoError], int], ...] = (
    (RunNotFoundError, 404),
    (RunConflictError, 409),
    (StoreError, 503),
    (LaunchError, 502),
    (AiodilocoError, 502),  # what the backend could not do
)


class TranslatingRoute(APIRoute):
    """Answers with a status and the error's own message, where a plain route would answer 500."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with this library's errors translated."""
        handle = super().get_route_handler()

        async def translated(request: Request) -> Response:
            try:
                return await handle(request)
            except AiodilocoError as exc:
                status = next(status for kind, status in _STATUSES if isinstance(exc, kind))
                raise HTTPException(status, str(exc)) from exc

        return translated
