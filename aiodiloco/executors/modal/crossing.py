"""Requests that are carried out in the thread of Modal's client; all that are made at once cross over together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from aiodiloco.executors.modal.requests import NoAnswerError, Outcome, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Crossing"]

T = TypeVar("T")
_Loop = asyncio.AbstractEventLoop

_FULL = 32  # so many cross at once, so that there is no pause while a turn makes a thousand


@dataclasses.dataclass(eq=False)
class _Errand:
    """A request on its way there, under way, or on its way back.

    Attributes:
        request: Makes it; called there.
        home: The event loop of the asker.
        answer: For the asker.
        task: Carries it out, there.
        is_called_off: Whether nobody waits for its answer any more.
    """

    request: Callable[[], Coroutine[Any, Any, Any]]
    home: _Loop
    answer: asyncio.Future[Outcome[Any]]
    task: asyncio.Task[None] | None = None
    is_called_off: bool = False

    def arrive(self, outcome: Outcome[Any]) -> None:
        """Tell the asker, at home."""
        if not self.answer.done():
            self.answer.set_result(outcome)

    def stop(self) -> None:
        """Cancel it, there."""
        if self.task is not None:
            self.task.cancel()


class Crossing:
    """Between the event loops of askers and that of Modal's client.

    Waking the event loop of another thread costs a system call, and then the interpreter's lock, which the other
    thread takes and keeps for up to 5 ms. So what one turn of an event loop has for the other side crosses at its end,
    all at once, or as soon as it is much.

    Attributes:
        there: The event loop of Modal's client.
    """

    def __init__(self, there: _Loop) -> None:
        self.there = there
        self._outbound: dict[_Loop, list[_Errand]] = {}  # each list belongs to the thread of its event loop
        self._inbound: dict[_Loop, list[tuple[_Errand, Outcome[Any]]]] = {}  # belongs to the thread of the client
        self._tasks: set[asyncio.Task[None]] = set()  # event loops hold their tasks weakly

    async def answer(self, request: Callable[[], Coroutine[Any, Any, T]], within_s: float) -> T:
        """Return what `request()` returns, or raise what it raises; when this is cancelled, so is the request.

        Raises:
            NoAnswerError: there was none within the time, or the client gave the request up.
        """
        value, error = await self._outcome(request, within_s)
        if error is None:
            return value  # type: ignore[return-value]  # it is one if there was no error
        try:
            raise error
        finally:
            del error  # its traceback knows this frame: else a thousand ends are as many reference cycles

    async def _outcome(self, request: Callable[[], Coroutine[Any, Any, T]], within_s: float) -> Outcome[Any]:
        home = asyncio.get_running_loop()
        errand = _Errand(request, home, home.create_future())
        self._send(errand)
        timer = home.call_later(within_s, errand.arrive, (None, NoAnswerError()))
        try:
            outcome = await errand.answer
        except asyncio.CancelledError:
            self._call_off(errand)
            raise
        finally:
            timer.cancel()
        if isinstance(outcome[1], NoAnswerError):
            self._call_off(errand)
        return outcome

    def _send(self, errand: _Errand) -> None:
        if errand.home not in self._outbound:
            self._outbound[errand.home] = []
            errand.home.call_soon(self._depart, errand.home)
        self._outbound[errand.home].append(errand)
        if len(self._outbound[errand.home]) == _FULL:
            self._depart(errand.home)

    def _depart(self, home: _Loop) -> None:
        if errands := self._outbound.pop(home, None):
            self.there.call_soon_threadsafe(self._set_out, errands)

    def _set_out(self, errands: list[_Errand]) -> None:
        for errand in errands:
            if not errand.is_called_off:
                errand.task = self.there.create_task(self._carry_out(errand))
                self._tasks.add(errand.task)
                errand.task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, errand: _Errand) -> None:
        try:
            outcome = await outcome_of(errand.request)
        except asyncio.CancelledError:
            self._bring_back(errand, (None, NoAnswerError()))
            raise
        self._bring_back(errand, outcome)

    def _bring_back(self, errand: _Errand, outcome: Outcome[Any]) -> None:
        if errand.is_called_off:
            return
        if errand.home not in self._inbound:
            self._inbound[errand.home] = []
            self.there.call_soon(self._return, errand.home)
        self._inbound[errand.home].append((errand, outcome))

    def _return(self, home: _Loop) -> None:
        arrivals = self._inbound.pop(home)
        with contextlib.suppress(RuntimeError):  # it is closed, so nobody waits there
            home.call_soon_threadsafe(_hand_over, arrivals)

    def _call_off(self, errand: _Errand) -> None:
        errand.is_called_off = True
        if not self.there.is_closed():
            self.there.call_soon_threadsafe(errand.stop)


def _hand_over(arrivals: list[tuple[_Errand, Outcome[Any]]]) -> None:
    for errand, outcome in arrivals:
        errand.arrive(outcome)
