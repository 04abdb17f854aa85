"""The launch journal: which processes were started for which rank, so that none is lost and none started twice.

    starts/<rank>-<incarnation>.json    somebody is about to start it; written first. `run.json` stands for these of
                                        all incarnations 0
    calls/<rank>-<incarnation>.json     its handle, written right after the spawn; or that it was given up

Both are written with `put_if_absent`. A driver that died between the two leaves a process of which nobody knows whether
it exists. The next driver gives it up, under the same key: should the spawn be journaled after all, one of the two
writes loses. Either the next driver finds a handle, or the one who spawned finds that he must end what he started.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import anyio

from aiodiloco.errors import KeyNotFoundError, StoreError
from aiodiloco.records import ReplicaHandle
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = ["Journal", "Slot", "give_up", "latest_handles", "read_journal", "record_call", "record_start"]

_CALLS = "calls/"
_STARTS = "starts/"
_GIVEN_UP = b'{"given_up": true}'
_NUM_TRIES = 4
_PAUSE_S = 0.2


class Slot(NamedTuple):
    """One process of one rank."""

    rank: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.rank}-{self.incarnation}"


@dataclasses.dataclass(frozen=True)
class Journal:
    """What the journal says.

    Attributes:
        handles: The processes that were started.
        unknown: Those that were about to be started, and nothing was heard of since.
        given_up: Those of which nothing was heard in time.
    """

    handles: dict[Slot, ReplicaHandle]
    unknown: frozenset[Slot]
    given_up: frozenset[Slot]


async def record_start(store: Store, slot: Slot, who: str) -> bool:
    """Announce that this process starts `slot`; False if another did."""
    return await _put_own(store, f"{_STARTS}{slot}.json", json.dumps({"who": who}).encode())


async def record_call(store: Store, handle: ReplicaHandle, slot: Slot) -> bool:
    """Write down the handle; False if the slot was given up meanwhile, so that the replica must be ended."""
    return await _put_own(store, f"{_CALLS}{slot}.json", handle.to_json().encode())


async def give_up(store: Store, slot: Slot) -> ReplicaHandle | None:
    """Give up a slot of which nothing was heard; return its handle if it was journaled after all."""
    key = f"{_CALLS}{slot}.json"
    if await _put_own(store, key, _GIVEN_UP):
        return None
    return _handle_in(bytes(await store.get(key)))


async def read_journal(store: Store, n_replicas: int) -> Journal:
    """Return all that is in the journal of a run of `n_replicas`."""
    starts = {slot async for key in store.list(_STARTS) if (slot := _slot_of(key, _STARTS))}
    called = [slot async for key in store.list(_CALLS) if (slot := _slot_of(key, _CALLS))]
    found = await map_concurrently(partial(_read_call, store), called)
    handles = {slot: handle for slot, handle in zip(called, found, strict=True) if handle is not None}
    starts |= {Slot(rank, 0) for rank in range(n_replicas)}
    return Journal(handles, frozenset(starts - set(called)), frozenset(set(called) - handles.keys()))


async def latest_handles(store: Store, n_replicas: int) -> list[ReplicaHandle]:
    """Return the handle of each rank's latest process, in rank order; ranks that have none are left out."""
    journal = await read_journal(store, n_replicas)
    latest = {slot.rank: handle for slot, handle in sorted(journal.handles.items())}
    return [handle for _, handle in sorted(latest.items())]


def _slot_of(key: str, prefix: str) -> Slot | None:
    rank, _, incarnation = key.removeprefix(prefix).removesuffix(".json").partition("-")
    return Slot(int(rank), int(incarnation)) if rank.isdecimal() and incarnation.isdecimal() else None


async def _read_call(store: Store, slot: Slot) -> ReplicaHandle | None:
    return _handle_in(bytes(await store.get(f"{_CALLS}{slot}.json")))


def _handle_in(data: bytes) -> ReplicaHandle | None:
    return None if data == _GIVEN_UP else ReplicaHandle.from_json(data.decode())


async def _put_own(store: Store, key: str, data: bytes) -> bool:
    """Write an object that nobody else writes alike, trying again; True if it is there in the end.

    A reply may be lost: then the second try finds the first one's object, and what it holds tells whose it is.
    """
    for number in range(_NUM_TRIES):
        try:
            return await store.put_if_absent(key, data) or bytes(await store.get(key)) == data
        except KeyNotFoundError:
            raise StoreError(f"{store.uri}/{key} vanished: is something deleting this run?") from None
        except StoreError:
            if number == _NUM_TRIES - 1:
                raise
            await anyio.sleep(_PAUSE_S * 2**number)
    raise AssertionError("unreachable")
