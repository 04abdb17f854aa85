"""What Modal is asked about a call: to end it, and for its end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import modal

from aiodiloco.executors.modal.crossing import Crossing
from aiodiloco.executors.modal.inside import Inside
from aiodiloco.executors.modal.requests import Requests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Questions"]


class Questions:
    """Asks by the public methods of Modal's client, or by what they wrap, which takes half of the processor time."""

    def __init__(self) -> None:
        self._requests = Requests()
        self._inside = Inside.if_known()
        self._crossing: Crossing | None = None

    async def end(self, call_id: str, client: modal.Client | None, *, kill: bool, within_s: float) -> None:
        """Have Modal accept that a call shall end.

        Args:
            call_id: Of the call.
            client: Whom to ask; None: the client of the environment.
            kill: End its container as well.
            within_s: For the answer.

        Raises:
            NoAnswerError: there was none within the time. Modal's own errors as they are.
        """
        await self._ask(call_id, client, "cancel", within_s, terminate_containers=kill)

    async def result(self, call_id: str, client: modal.Client | None, *, wait_s: float, within_s: float) -> object:
        """Return what a call has returned, or raise what it has raised, once it has ended.

        Args:
            call_id, client, within_s: As for `end`.
            wait_s: So long Modal waits for the end, and then answers that there is none: a TimeoutError.
        """
        return await self._ask(call_id, client, "get", within_s, timeout=wait_s)

    async def _ask(
        self, call_id: str, client: modal.Client | None, method: str, within_s: float, **options: float
    ) -> object:
        if self._inside is None:
            call = modal.FunctionCall.from_id(call_id, client=client)
            return await self._requests.answer(partial(getattr(call, method).aio, **options), within_s)
        ask = partial(_ask_inside, self._inside, call_id, client, method, options)
        return await self._cross(self._inside, ask, within_s)

    async def _cross(self, inside: Inside, ask: Callable[[], Coroutine[Any, Any, object]], within_s: float) -> object:
        there = inside.event_loop()
        if self._crossing is None or self._crossing.there is not there:  # it has another one after a fork
            self._crossing = Crossing(there)
        return await self._crossing.answer(ask, within_s)


async def _ask_inside(
    inside: Inside, call_id: str, client: modal.Client | None, method: str, options: dict[str, Any]
) -> object:
    call = await inside.call(call_id, client)
    return await getattr(call, method)(**options)
