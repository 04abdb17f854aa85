"""`join`: become a rank of a run, from inside a replica."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Literal

from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.diloco import DiLoCo
from aiodiloco.events import EventWriter
from aiodiloco.replica.ending import end_with_lease
from aiodiloco.replica.logs import capture_logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import torch
    from torch import Tensor, nn

    from aiodiloco.collective import AllReduceReport
    from aiodiloco.collective.plan import Algorithm, Link
    from aiodiloco.diloco import OuterOptimizerFactory
    from aiodiloco.store import Store

__all__ = ["Replica", "join", "join_unguarded"]


class Replica:
    """This process's place in a run; what `join` gives.

    Attributes:
        transport: The all-reduce itself. Its fragment 0 is free for rounds of one's own; models take 1, 2, …
        events: The run's event log.
    """

    def __init__(self, transport: ObjectStoreAllReduce, events: EventWriter) -> None:
        self.transport = transport
        self.events = events
        self._fragments = itertools.count(1)

    @property
    def rank(self) -> int:
        """This rank, 0 .. world_size - 1."""
        return self.transport.rank

    @property
    def world_size(self) -> int:
        """Number of ranks in the run."""
        return self.transport.world_size

    @property
    def store(self) -> Store:
        """The run's own prefix of the store."""
        return self.transport.store

    async def all_reduce(
        self, tensors: Mapping[str, Tensor], *, weight: float = 1.0, wire: str | None = None
    ) -> AllReduceReport:
        """Average tensors of one's own over all ranks, in place; see `ObjectStoreAllReduce.all_reduce`."""
        return await self.transport.all_reduce(tensors, weight=weight, wire=wire)

    def report(self, step: int, **metrics: float | str | Tensor) -> None:
        """Add a `metrics` event to the run's log, e.g. `report(step, loss=0.7, accuracy=0.9)`. Never blocks.

        `DiLoCo.step` reports each step's loss by itself; this is for whatever else should be seen.
        """
        self.events.emit("metrics", step=step, **metrics)

    def diloco(
        self,
        model: nn.Module,
        inner_optimizer: torch.optim.Optimizer,
        *,
        sync_every: int,
        outer: OuterOptimizerFactory | None = None,
        fragments: int = 1,
        delay: int = 0,
        mix: float = 0.0,
        wire: str | None = None,
    ) -> DiLoCo:
        """Return a `DiLoCo` that trains `model` as this rank; its steps and rounds go to the run's event log.

        For several models call it once for each, in the same order on every rank.

        Args:
            model: Initialised alike on every rank.
            inner_optimizer: Any torch optimizer over its parameters.
            sync_every: Inner steps per round.
            outer: Outer optimizer; None is `NesterovSGD(lr=0.7, momentum=0.9)`.
            fragments: Parts the model is synchronised in. This release knows 1: the whole model at once.
            delay: Inner steps between sending and applying a fragment. This release knows 0.
            mix: Share of the local parameters kept on arrival. This release knows 0.0.
            wire: Format of the pseudo-gradients; None takes the one given to `join`.

        Raises:
            ValueError: an argument out of range; see `DiLoCo`.
        """
        _check_streaming(fragments, delay, mix)
        return DiLoCo(
            model,
            inner_optimizer,
            self.transport,
            sync_every=sync_every,
            outer=outer,
            wire=wire,
            fragment=next(self._fragments),
            emit=self.events.emit,
        )


@contextlib.asynccontextmanager
async def join(
    rendezvous_uri: str | os.PathLike[str],
    *,
    rank: int,
    world_size: int,
    wire: str = "fp32",
    algorithm: Algorithm | Literal["auto"] = "auto",
    chunk_bytes: int | None = None,
    link: Link | None = None,
    timeout: float = 600.0,
    log_capture: bool = True,
    incarnation: int | None = None,
) -> AsyncIterator[Replica]:
    """Join the run at `rendezvous_uri` as `rank` for as long as the context is open.

    In a run that was launched with a lease, the context is cancelled when the driver is gone for longer than that, and
    raises LeaseExpiredError. A replica that has not left the context half a beat later is ended with exit code 75.

    Args:
        rendezvous_uri: The run's own prefix in a store, the same for all ranks and for no other run.
        rank: 0 .. world_size - 1, each taken once.
        world_size: Number of ranks; the first to join fixes it for the run.
        wire: Wire format of its all-reduces unless they name another.
        algorithm: How the mean is formed, `"gather"`, `"scatter"` or `"auto"`; see `ObjectStoreAllReduce`.
        chunk_bytes: Encoded bytes per chunk, about; None chooses by size.
        link: What is known of the way to the store; None measures it.
        timeout: Seconds an all-reduce waits for the slowest rank.
        log_capture: Also write what passes the root logger to the event log.
        incarnation: How often this rank was started before, as `launch` passes it to an entrypoint with a parameter of
            this name: a process whose rank was started again since ends itself as if the driver were gone.

    Raises:
        ValueError: rank, world_size, wire, algorithm, chunk_bytes or URI out of range.
        StoreError: the store cannot be used.
        WorldSizeError, RankTakenError: the run has another size, or the rank is held by another process.
        LeaseExpiredError: the driver is gone.
    """
    joining = join_unguarded(
        rendezvous_uri,
        rank=rank,
        world_size=world_size,
        wire=wire,
        algorithm=algorithm,
        chunk_bytes=chunk_bytes,
        link=link,
        timeout=timeout,
        log_capture=log_capture,
    )
    async with joining as replica, end_with_lease(rendezvous_uri, replica.store, rank=rank, incarnation=incarnation):
        yield replica


@contextlib.asynccontextmanager
async def join_unguarded(
    rendezvous_uri: str | os.PathLike[str],
    *,
    rank: int,
    world_size: int,
    wire: str,
    algorithm: Algorithm | Literal["auto"],
    chunk_bytes: int | None,
    link: Link | None,
    timeout: float,
    log_capture: bool,
) -> AsyncIterator[Replica]:
    """Do what `join` does, but for the lease."""
    transport = ObjectStoreAllReduce(
        rendezvous_uri,
        rank=rank,
        world_size=world_size,
        wire=wire,
        algorithm=algorithm,
        chunk_bytes=chunk_bytes,
        link=link,
        timeout=timeout,
    )
    async with transport, EventWriter(transport.store, str(transport.member)) as events:
        with capture_logs(events) if log_capture else contextlib.nullcontext():
            events.emit("joined", rank=rank, world_size=world_size, pid=os.getpid())
            try:
                yield Replica(transport, events)
            except BaseException as exc:
                events.emit("left", rank=rank, error=f"{type(exc).__name__}: {exc}")
                raise
            events.emit("left", rank=rank, error=None)


def _check_streaming(fragments: int, delay: int, mix: float) -> None:
    for name, value, known in (("fragments", fragments, 1), ("delay", delay, 0), ("mix", mix, 0.0)):
        if value != known:
            raise ValueError(f"{name}={value!r}: this release synchronises the model whole; leave {name} at {known}")
