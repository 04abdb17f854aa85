"""Requests cross to another thread's event loop together, and can be let go of."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import anyio
import pytest

from aiodiloco.executors.modal import crossing as crossing_module
from aiodiloco.executors.modal.crossing import Crossing
from aiodiloco.executors.modal.requests import NoAnswerError

_BOUND_S = 30.0


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    num_woken = 0

    def call_soon_threadsafe(self, *args, **options):
        self.num_woken += 1
        return super().call_soon_threadsafe(*args, **options)


@pytest.fixture
def there():
    loop = CountingLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _number(number: int) -> tuple[int, int]:
    return number, threading.get_ident()


async def _raise(exc: BaseException) -> None:
    raise exc


class Patient:
    """A request that nobody answers."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.num_cancelled = 0
        self.has_ended = threading.Event()

    async def wait(self) -> None:
        self.has_begun.set()
        try:
            await asyncio.sleep(_BOUND_S)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            await asyncio.sleep(0.01)
            raise
        finally:
            self.has_ended.set()


async def test_what_a_turn_asks_crosses_together_and_each_gets_its_own_answer(there) -> None:
    crossing = Crossing(there)
    answers = await asyncio.gather(*(crossing.answer(partial(_number, n), _BOUND_S) for n in range(100)))
    assert [number for number, _ in answers] == list(range(100))
    assert {thread for _, thread in answers}.isdisjoint({threading.get_ident()})
    assert there.num_woken == -(-100 // crossing_module._FULL)


@pytest.mark.parametrize("exc", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), TimeoutError()])
async def test_whatever_a_request_raises_is_raised_to_its_asker(there, exc) -> None:
    with pytest.raises(type(exc)) as caught:
        await Crossing(there).answer(partial(_raise, exc), _BOUND_S)
    assert caught.value is exc
    assert there.is_running()


async def test_without_an_answer_in_time_the_request_is_cancelled_once(there) -> None:
    patient = Patient()
    with pytest.raises(NoAnswerError):
        await Crossing(there).answer(patient.wait, 0.05)
    assert await anyio.to_thread.run_sync(patient.has_ended.wait, _BOUND_S)
    assert patient.num_cancelled == 1


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_who_is_cancelled_lets_go_of_the_request(there, how) -> None:
    patient, crossing = Patient(), Crossing(there)
    with anyio.CancelScope() as scope:
        task = asyncio.create_task(crossing.answer(patient.wait, _BOUND_S))
        await anyio.to_thread.run_sync(patient.has_begun.wait, _BOUND_S)
        if how == "task":
            task.cancel()
        else:
            scope.cancel()
        await task if how == "scope" else await asyncio.wait([task])
    assert await anyio.to_thread.run_sync(patient.has_ended.wait, _BOUND_S)
    assert patient.num_cancelled == 1
    assert task.cancelled()


async def test_a_request_that_is_given_up_before_it_has_left_is_not_made(there) -> None:
    patient, crossing = Patient(), Crossing(there)
    asking = crossing.answer(patient.wait, _BOUND_S)
    asking.send(None)
    with pytest.raises(asyncio.CancelledError):
        asking.throw(asyncio.CancelledError())  # in the same turn of the event loop
    await crossing.answer(partial(_number, 0), _BOUND_S)
    assert not patient.has_begun.is_set()


async def test_a_request_that_the_client_gives_up_has_no_answer(there) -> None:
    with anyio.fail_after(_BOUND_S), pytest.raises(NoAnswerError):
        await Crossing(there).answer(partial(_raise, asyncio.CancelledError()), 2 * _BOUND_S)


def test_askers_of_several_event_loops_and_one_that_is_gone(there) -> None:
    crossing, patient = Crossing(there), Patient()

    async def leave() -> None:
        asyncio.create_task(crossing.answer(patient.wait, _BOUND_S))  # noqa: RUF006 - left behind on purpose
        await asyncio.to_thread(patient.has_begun.wait, _BOUND_S)

    async def ask(number: int) -> int:
        return (await crossing.answer(partial(_number, number), _BOUND_S))[0]

    asyncio.run(leave())
    answers = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: asyncio.run(ask(n))})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_BOUND_S)
    assert answers == {n: n for n in range(4)}
    assert patient.has_ended.wait(_BOUND_S)
    assert not crossing._outbound
    assert not crossing._inbound


async def test_an_answer_that_raised_leaves_no_cycle(there) -> None:
    """A thousand of them would be a pause for the garbage collector."""

    class OwnError(Exception):
        pass

    crossing = Crossing(there)

    async def fail() -> None:
        raise OwnError

    async def ask() -> weakref.ref[OwnError]:
        try:
            await crossing.answer(fail, _BOUND_S)
        except OwnError as exc:
            return weakref.ref(exc)
        raise AssertionError

    gc.disable()
    try:
        left = await ask()
        with anyio.fail_after(_BOUND_S):
            while left() is not None:  # noqa: ASYNC110 - the other thread still holds it for a moment
                await anyio.sleep(0.001)
    finally:
        gc.enable()
