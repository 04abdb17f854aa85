"""Taking a place in a run: the claim, the heartbeat, the event log, and what there is to recover."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Literal

import anyio

from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.collective.decision import is_replayable
from aiodiloco.errors import StoreError
from aiodiloco.events import EventWriter
from aiodiloco.replica.checkpoints import CheckpointWriter, Recovered, recover
from aiodiloco.replica.heartbeat import Heartbeat
from aiodiloco.replica.logs import capture_logs
from aiodiloco.store import ResilientStore, Store, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiodiloco.collective.plan import Algorithm, Link

__all__ = ["Joining", "Place", "joined"]

_FIRST_FRAGMENTS = (0, 1)  # rounds of the user's own, and of the first model
_PATIENCE_S = 30.0  # with a store that fails, where a run does not depend on it
_OPEN_S = 300.0  # a checkpoint of a large model is read meanwhile


@dataclasses.dataclass(frozen=True)
class Joining:
    """As what a replica joins; see `join`, whose arguments these are."""

    rank: int
    world_size: int
    wire: str = "fp32"
    algorithm: Algorithm | Literal["auto"] = "auto"
    chunk_bytes: int | None = None
    link: Link | None = None
    timeout: float = 600.0
    min_replicas: int | None = None
    grace: float = 10.0
    max_norm_ratio: float = math.inf
    incarnation: int | None = None
    log_capture: bool = True


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in a run, held.

    Attributes:
        transport: The all-reduce, open.
        events: The run's event log, open.
        checkpoints: Takes shares of checkpoints over.
        recovered: The latest checkpoint of each of the run's models, by number.
    """

    transport: ObjectStoreAllReduce
    events: EventWriter
    checkpoints: CheckpointWriter
    recovered: Mapping[int, Recovered]


@contextlib.asynccontextmanager
async def joined(rendezvous: Store | str | os.PathLike[str], joining: Joining) -> AsyncIterator[Place]:
    """Hold a place in the run for as long as the context is open."""
    async with AsyncExitStack() as stack:
        with anyio.move_on_after(_OPEN_S) as scope:
            store = rendezvous if isinstance(rendezvous, Store) else open_store(rendezvous)
            await stack.enter_async_context(store)
            patient = ResilientStore(store, patience_s=_PATIENCE_S)
            recovered = await recover(patient, joining.rank)
            can_come_back = bool(recovered) or await is_replayable(patient, _FIRST_FRAGMENTS)
            if not can_come_back:  # rounds are deleted once checkpoints are there: these may have come meanwhile
                recovered = await recover(patient, joining.rank)
                can_come_back = bool(recovered)
        if scope.cancelled_caught:
            raise StoreError(f"the store at {rendezvous} did not answer within {_OPEN_S:g} s")
        transport = await stack.enter_async_context(_transport(store, joining, takes_over=can_come_back))
        member = transport.member
        await stack.enter_async_context(Heartbeat(store, member))
        events = await stack.enter_async_context(EventWriter(patient, str(member)))
        stack.enter_context(capture_logs(events) if joining.log_capture else contextlib.nullcontext())
        events.emit(
            "joined",
            rank=member.rank,
            world_size=joining.world_size,
            pid=os.getpid(),
            incarnation=member.incarnation,
        )
        try:
            async with CheckpointWriter(patient, events, transport.keep_from) as checkpoints:
                yield Place(transport, events, checkpoints, recovered)
        except BaseException as exc:
            events.emit("left", rank=member.rank, error=f"{type(exc).__name__}: {exc}")
            raise
        events.emit("left", rank=member.rank, error=None)


def _transport(store: Store, joining: Joining, *, takes_over: bool) -> ObjectStoreAllReduce:
    return ObjectStoreAllReduce(
        store,
        rank=joining.rank,
        world_size=joining.world_size,
        wire=joining.wire,
        algorithm=joining.algorithm,
        chunk_bytes=joining.chunk_bytes,
        link=joining.link,
        timeout=joining.timeout,
        min_replicas=joining.min_replicas,
        grace=joining.grace,
        max_norm_ratio=joining.max_norm_ratio,
        incarnation=joining.incarnation,
        takes_over=takes_over,
    )
