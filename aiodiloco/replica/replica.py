"""`join`: become a rank of a run, from inside a replica."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import TYPE_CHECKING, Literal

from aiodiloco.diloco import Checkpoints, DiLoCo
from aiodiloco.replica.ending import end_with_lease
from aiodiloco.replica.joining import Joining, Place, joined
from aiodiloco.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping

    import torch
    from torch import Tensor, nn

    from aiodiloco.collective import AllReduceReport
    from aiodiloco.collective.plan import Algorithm, Link
    from aiodiloco.diloco import OuterOptimizerFactory, Stateful

__all__ = ["Replica", "join", "join_unguarded"]

_FIRST_FRAGMENTS = (0, 1)  # rounds of the user's own, and of the first model
_PATIENCE_S = 30.0  # with a store that fails, where a run does not depend on it
_OPEN_S = 300.0  # a checkpoint of a large model is read meanwhile


class Replica:
    """This process's place in a run; what `join` gives.

    Attributes:
        transport: The all-reduce itself. Its fragment 0 is free for rounds of one's own; models take 1, 2, …
        events: The run's event log.
    """

    def __init__(self, place: Place) -> None:
        self.transport = place.transport
        self.events = place.events
        self._checkpoints = place.checkpoints
        self._recovered = dict(place.recovered)
        self._fragments = itertools.count(1)
        self._takes_checkpoints: bool | None = None  # not said yet

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
        self,
        tensors: Mapping[str, Tensor],
        *,
        weight: float = 1.0,
        wire: str | None = None,
        round: int | None = None,  # noqa: A002 - the field's word
    ) -> AllReduceReport:
        """Average tensors of one's own over all ranks, in place; see `ObjectStoreAllReduce.all_reduce`.

        Args:
            tensors: The same names, shapes and dtypes on every rank.
            weight: Of this rank's.
            wire: Overrides the wire format given to `join`.
            round: Which of these all-reduces this is; None counts from 0.

        Raises:
            ValueError: no `round` from a replica that came back: it cannot know how many the others have made.
        """
        if round is None and self.transport.member.incarnation > 0:
            raise ValueError(
                f"rank {self.rank} came back as process {self.transport.member}, and cannot count the all-reduces made "
                "before: pass round=…, for instance the inner step"
            )
        return await self.transport.all_reduce(tensors, weight=weight, wire=wire, round=round)

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
        weigh_by_tokens: bool = False,
        checkpoint_every: int | None = None,
        state: Mapping[str, Stateful] | None = None,
    ) -> DiLoCo:
        """Return a `DiLoCo` that trains `model` as this rank; its steps and rounds go to the run's event log.

        For several models call it once for each, in the same order on every rank.

        In a run that has a checkpoint, model and optimizers are set to it here, whatever they were. Where every round
        needs all ranks, the inner steps since are then taken once more, up to where the run was: with the same data
        it goes on as if nothing had happened. Where rounds go on without a rank (`min_replicas`), the rounds since are
        taken by the first `step`, or by `await diloco.catch_up()` before it; the inner optimizer stays that of the
        checkpoint.

        Args:
            model: Initialised alike on every rank.
            inner_optimizer: Any torch optimizer over its parameters.
            sync_every: Inner steps per round.
            outer: Outer optimizer; None is `NesterovSGD(lr=0.7, momentum=0.9)`.
            fragments: Parts the model is synchronised in. This release knows 1: the whole model at once.
            delay: Inner steps between sending and applying a fragment. This release knows 0.
            mix: Share of the local parameters kept on arrival. This release knows 0.0.
            wire: Format of the pseudo-gradients; None takes the one given to `join`.
            weigh_by_tokens: Weight replicas by the tokens they saw in the round instead of equally.
            checkpoint_every: Rounds between two checkpoints of the whole run in its store; None takes none. For all
                models of a replica or for none. With them, a replica that died can come back, and a run that stopped
                goes on.
            state: What a checkpoint should keep of the training loop's own, by name: a data loader, a schedule.

        Raises:
            ValueError: an argument out of range, or the run's checkpoint is of another model; see `DiLoCo`.
            TypeError: a checkpoint cannot hold something in `state`; says where it is.
        """
        _check_streaming(fragments, delay, mix)
        self._check_all_or_none(checkpoint_every)
        fragment = next(self._fragments)
        diloco = DiLoCo(
            model,
            inner_optimizer,
            self.transport,
            sync_every=sync_every,
            outer=outer,
            wire=wire,
            weigh_by_tokens=weigh_by_tokens,
            fragment=fragment,
            emit=self.events.emit,
            checkpoints=self._plan_checkpoints(checkpoint_every, fragment - 1, state or {}),
        )
        recovered = self._recovered.pop(fragment - 1, None)
        loaded = None if recovered is None else recovered.loaded
        if checkpoint_every is not None or recovered is not None:
            self.transport.keep_from(0 if recovered is None else recovered.kept_from, fragment)
        if loaded is not None:
            diloco.restore(loaded)
            self.events.emit("restored", rank=self.rank, round=loaded.round, step=loaded.inner_step)
        diloco.is_behind = loaded is not None or self.transport.member.incarnation > 0
        has_own = loaded is None or loaded.replica is not None
        diloco.replays = has_own and not self.transport.is_elastic  # else the others would be further each time
        return diloco

    def _check_all_or_none(self, checkpoint_every: int | None) -> None:
        """Refuse a model without checkpoints beside one with them: a replica that comes back has lost its rounds."""
        takes = checkpoint_every is not None
        if self._takes_checkpoints not in (None, takes):
            raise ValueError(
                f"checkpoint_every={checkpoint_every!r}, unlike for another model of this replica: give it for all "
                "models or for none, for a rank comes back to all of them or to none"
            )
        self._takes_checkpoints = takes

    def _plan_checkpoints(
        self, every: int | None, model_number: int, state: Mapping[str, Stateful]
    ) -> Checkpoints | None:
        if every is None:
            return None
        writer = self._checkpoints
        return Checkpoints(every, self.rank, model_number, writer.save, lambda: writer.load(model_number), state)


@contextlib.asynccontextmanager
async def join(
    rendezvous_uri: Store | str | os.PathLike[str],
    *,
    rank: int,
    world_size: int,
    wire: str = "fp32",
    algorithm: Algorithm | Literal["auto"] = "auto",
    chunk_bytes: int | None = None,
    link: Link | None = None,
    timeout: float = 600.0,
    min_replicas: int | None = None,
    grace: float = 10.0,
    max_norm_ratio: float = math.inf,
    log_capture: bool = True,
    incarnation: int | None = None,
) -> AsyncIterator[Replica]:
    """Join the run at `rendezvous_uri` as `rank` for as long as the context is open.

    A run can be joined again by a rank whose process died, while the others train on or wait for it, and by all ranks
    after the whole run stopped: as long as its store holds a checkpoint, or all rounds there were. The newest process
    of a rank holds it; older ones are out.

    In a run that was launched with a lease, the context is cancelled when the driver is gone for longer than that, and
    raises LeaseExpiredError. A replica that has not left the context half a beat later is ended with exit code 75.

    Args:
        rendezvous_uri: The run's own prefix in a store, the same for all ranks and for no other run: a URI, or a store
            to open and close with this.
        rank: 0 .. world_size - 1, each taken once.
        world_size: Number of ranks; the first to join fixes it for the run.
        wire: Wire format of its all-reduces unless they name another.
        algorithm: How the mean is formed, `"gather"`, `"scatter"` or `"auto"`; see `ObjectStoreAllReduce`.
        chunk_bytes: Encoded bytes per chunk, about; None chooses by size.
        link: What is known of the way to the store; None measures it.
        timeout: Seconds an all-reduce waits for the slowest rank.
        min_replicas: So many replicas make a round, if the others do not come; None: all of them.
        grace: Seconds the late are given, at least, once so many are there.
        max_norm_ratio: Where fewer than all will do, a pseudo-gradient with a norm this many times the median is left
            out.
        log_capture: Also write what passes the root logger to the event log.
        incarnation: How often this rank was started before, as `launch` passes it to an entrypoint with a parameter of
            this name: a process whose rank was started again since ends itself as if the driver were gone.

    Raises:
        ValueError: rank, world_size, wire, algorithm, chunk_bytes or URI out of range.
        StoreError: the store cannot be used.
        WorldSizeError, RankTakenError: the run has another size, or the rank is held by another process.
        LeaseExpiredError: the driver is gone.
    """
    joining = Joining(
        rank=rank,
        world_size=world_size,
        wire=wire,
        algorithm=algorithm,
        chunk_bytes=chunk_bytes,
        link=link,
        timeout=timeout,
        min_replicas=min_replicas,
        grace=grace,
        max_norm_ratio=max_norm_ratio,
        incarnation=incarnation,
        log_capture=log_capture,
    )
    async with join_unguarded(rendezvous_uri, joining) as replica:
        uri = rendezvous_uri.uri if isinstance(rendezvous_uri, Store) else rendezvous_uri
        async with end_with_lease(uri, replica.store, rank=rank, incarnation=incarnation):
            yield replica


@contextlib.asynccontextmanager
async def join_unguarded(rendezvous_uri: Store | str | os.PathLike[str], joining: Joining) -> AsyncIterator[Replica]:
    """Do what `join` does, but for the lease."""
    async with joined(rendezvous_uri, joining) as place:
        yield Replica(place)


def _check_streaming(fragments: int, delay: int, mix: float) -> None:
    for name, value, known in (("fragments", fragments, 1), ("delay", delay, 0), ("mix", mix, 0.0)):
        if value != known:
            raise ValueError(f"{name}={value!r}: this release synchronises the model whole; leave {name} at {known}")
