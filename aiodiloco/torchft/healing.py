"""How a replica that comes back gets the others' state: it asks through the store, and one of them answers.

    torchft/start.json             the outer parameters' digest that all must begin with; rank 0 fixes it
    torchft/wanted/<member>        this replica needs the state
    torchft/state/<step>           the state with which a replica goes into the round of this step

torchft's algorithms keep their outer optimizer to themselves, so the state cannot be replayed from the rounds' means.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.decision import read_decision, read_when_there
from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.meter import Meter
from aiodiloco.collective.waiting import Backoff
from aiodiloco.errors import KeyNotFoundError, RoundTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiodiloco.store import Buffer, Store

__all__ = ["answer", "ask", "fix_start", "is_decided", "list_asking", "was_answered"]

_START = "torchft/start.json"
_WANTED = "torchft/wanted/"
_STATES = "torchft/state/"

_ASK_AGAIN_S = 5.0


async def is_decided(store: Store, step: int) -> bool:
    """Return whether the others have taken this step. Raises RoundRefusedError if they could not."""
    return await read_decision(store, RoundKeys(step, 0), Meter()) is not None


async def fix_start(store: Store, digest: str, *, may_fix: bool, timeout_s: float) -> str:
    """Return the digest that all ranks begin with: that of the first who may fix it.

    Raises:
        RoundTimeoutError: nobody who may came in time.
    """
    with anyio.move_on_after(timeout_s):
        if may_fix:
            await store.put_if_absent(_START, seal_document({"parameters": digest}))
        return await read_when_there(store, _START, _read_start, Meter())
    raise RoundTimeoutError(f"rank 0 has not said within {timeout_s:g} s what the run at {store.uri} begins with")


def _read_start(data: Buffer) -> str:
    return str(parse_document(data, _START, "parameters")["parameters"])


async def list_asking(store: Store) -> set[Member]:
    """Return who needs the state."""
    members = set()
    async for key in store.list(_WANTED):
        rank, _, incarnation = key.removeprefix(_WANTED).partition("-")
        if rank.isdecimal() and incarnation.isdecimal():
            members.add(Member(int(rank), int(incarnation)))
    return members


async def was_answered(store: Store, step: int) -> bool:
    """Return whether somebody has written the state of this step."""
    return step in await _list_states(store)


async def answer(store: Store, asking: Iterable[Member], step: int, data: bytes) -> None:
    """Write the state with which this replica goes into the round of `step`, for all who ask; delete older ones."""
    await store.put_if_absent(_key(step), data)
    for member in asking:  # who missed it asks again; who died meanwhile does not
        await store.delete(f"{_WANTED}{member}")
    for old in await _list_states(store):
        if old < step:
            await store.delete(_key(old))


async def ask(store: Store, me: Member, *, timeout_s: float) -> tuple[int, memoryview]:
    """Return a step that the others have not taken yet, and the state that belongs to it.

    Raises:
        RoundTimeoutError: nobody answered in time.
    """
    with anyio.move_on_after(timeout_s) as scope:
        while True:
            await store.put(f"{_WANTED}{me}", b"{}")
            step = None
            with anyio.move_on_after(_ASK_AGAIN_S):
                step = await _find(store)
            with contextlib.suppress(KeyNotFoundError):  # a later one is there
                if step is not None:
                    data = await store.get(_key(step))
                    await store.delete(f"{_WANTED}{me}")
                    return step, data
    assert scope.cancelled_caught
    raise RoundTimeoutError(
        f"rank {me.rank} is behind the run at {store.uri}, and nobody gave it the state within {timeout_s:g} s: where "
        "all replicas are new, load a checkpoint of your own, with manager.load_state_dict, and use a new prefix"
    )


async def _find(store: Store) -> int:
    """Wait for a state whose round is still to come."""
    backoff = Backoff()
    while True:
        for step in sorted(await _list_states(store), reverse=True):
            if not await is_decided(store, step):
                return step
        await backoff.pause()


async def _list_states(store: Store) -> set[int]:
    steps = set()
    async for key in store.list(_STATES):
        if (tail := key.removeprefix(_STATES)).isdecimal():
            steps.add(int(tail))
    return steps


def _key(step: int) -> str:
    return f"{_STATES}{step:08d}"
