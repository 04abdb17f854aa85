"""`join_sync`: `join` for training code that is not async. The network gets a thread and an event loop of its own."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Literal

from anyio.from_thread import start_blocking_portal

from aiodiloco.diloco import SyncDiLoCo
from aiodiloco.diloco.portal import NetworkThread
from aiodiloco.lease import read_terms
from aiodiloco.replica.guard import LeaseGuard
from aiodiloco.replica.joining import Joining
from aiodiloco.replica.replica import Replica, join_unguarded

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor, nn

    from aiodiloco.collective import AllReduceReport
    from aiodiloco.collective.plan import Algorithm, Link
    from aiodiloco.diloco import OuterOptimizerFactory, Stateful

__all__ = ["SyncReplica", "join_sync"]


class SyncReplica:
    """A `Replica` for sync code: the same words, without await."""

    def __init__(self, replica: Replica, network: NetworkThread) -> None:
        self._replica = replica
        self._network = network

    @property
    def rank(self) -> int:
        """This rank."""
        return self._replica.rank

    @property
    def world_size(self) -> int:
        """Number of ranks in the run."""
        return self._replica.world_size

    def report(self, step: int, **metrics: float | str | Tensor) -> None:
        """Add a `metrics` event to the run's log; see `Replica.report`."""
        self._replica.report(step, **metrics)

    def all_reduce(
        self,
        tensors: Mapping[str, Tensor],
        *,
        weight: float = 1.0,
        wire: str | None = None,
        round: int | None = None,  # noqa: A002 - the field's word
    ) -> AllReduceReport:
        """Average tensors of one's own over all ranks, in place; see `Replica.all_reduce`."""
        return self._network.call(lambda: self._replica.all_reduce(tensors, weight=weight, wire=wire, round=round))

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
    ) -> SyncDiLoCo:
        """Return a `SyncDiLoCo` that trains `model` as this rank; see `Replica.diloco`."""
        inner = self._replica.diloco(
            model,
            inner_optimizer,
            sync_every=sync_every,
            outer=outer,
            fragments=fragments,
            delay=delay,
            mix=mix,
            wire=wire,
            weigh_by_tokens=weigh_by_tokens,
            checkpoint_every=checkpoint_every,
            state=state,
        )
        diloco = SyncDiLoCo(inner, self._network)
        if inner.is_behind and not inner.replays:
            diloco.catch_up()
        return diloco


@contextlib.contextmanager
def join_sync(
    rendezvous_uri: str | os.PathLike[str],
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
) -> Iterator[SyncReplica]:
    """Join the run at `rendezvous_uri` as `rank` for as long as the context is open; see `join`.

    When the driver is gone, the next call of `step`, `synchronize` or `all_reduce`, and one that waits, raises
    LeaseExpiredError; a replica that makes none within half a beat is ended with exit code 75.
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
    with (
        start_blocking_portal(name="aiodiloco-network") as portal,
        portal.wrap_async_context_manager(join_unguarded(rendezvous_uri, joining)) as replica,
    ):
        network = NetworkThread(portal)
        terms = network.call(lambda: read_terms(replica.store))
        if terms is None:
            yield SyncReplica(replica, network)
            return
        guard = LeaseGuard(rendezvous_uri, terms, rank=rank, incarnation=incarnation, on_expired=network.interrupt)
        guard.start()
        try:
            yield SyncReplica(replica, network)
        finally:
            guard.stop()
