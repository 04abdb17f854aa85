"""A whole run in one event loop: replicas that live and die by a schedule, over one store in memory."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import anyio
import torch

from aiodiloco.codec import as_bytes, digest
from aiodiloco.errors import AiodilocoError, RankTakenError
from aiodiloco.replica import join
from aiodiloco.store import MemoryStore
from aiodiloco.testing.faulty_store import FaultyStore
from aiodiloco.testing.simulation.process import ProcessStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from aiodiloco.collective import AllReduceReport, ObjectStoreAllReduce
    from aiodiloco.testing.simulation.schedule import Event, Schedule

__all__ = ["Finding", "World"]

_MOST_RESTARTS = 12
_RESTART_S = 2.0
_ROUND_TIMEOUT_S = 120.0
_END_S = 6 * 3600.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a process held after a round."""

    process: str
    round: int
    bits: str


class World:
    """Everything that a check of a run needs to know.

    Attributes:
        store: What the replicas left.
        findings: The outer parameters of every process after every round it saw.
        contributed: (round, rank-incarnation) -> what it gave to the mean, before any wire format.
        finished: Rank -> digest of its outer parameters at the end.
        fenced: Processes that were told that another one has their rank.
        errors: What else ended processes, in order.
        injected: How often each fault of the store happened.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.store = MemoryStore()
        self.findings: list[Finding] = []
        self.contributed: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.finished: dict[int, str] = {}
        self.fenced: list[str] = []
        self.errors: list[tuple[str, AiodilocoError]] = []
        self.injected: Counter[str] = Counter()
        self._newest: dict[int, tuple[ProcessStore, anyio.CancelScope]] = {}
        self._num_started: defaultdict[int, int] = defaultdict(int)
        self._away_s: dict[int, float] = {}
        self._all_finished = anyio.Event()

    async def run(self) -> None:
        """Run until every rank has finished, or six hours have passed."""
        with anyio.move_on_after(_END_S):
            async with anyio.create_task_group() as tg:
                for rank in range(self.schedule.world_size):
                    tg.start_soon(self._keep_running, rank, self.schedule.start_s[rank])
                for event in self.schedule.events:
                    tg.start_soon(self._cause, event)
                await self._all_finished.wait()
                tg.cancel_scope.cancel()

    async def _keep_running(self, rank: int, after_s: float) -> None:
        """Start a rank, and start it again when it ends before it has finished, as a driver would.

        Unless it was fenced: then another process of the rank goes on.
        """
        await anyio.sleep(after_s)
        while rank not in self.finished and self._num_started[rank] < _MOST_RESTARTS:
            if await self._live(rank):
                return
            await anyio.sleep(self._away_s.pop(rank, _RESTART_S))

    async def _cause(self, event: Event) -> None:
        await anyio.sleep(event.at_s)
        store, scope = self._newest.get(event.rank, (None, None))
        if event.what == "duplicate":
            await self._keep_running(event.rank, 0.0)
        elif store is not None and scope is not None and event.what == "pause":
            store.hold(event.for_s)
        elif store is not None and scope is not None:
            self._away_s[event.rank] = event.for_s
            store.cut()
            scope.cancel()

    async def _live(self, rank: int) -> bool:
        """Run one process of a rank to its end; return whether it was fenced."""
        number = self._num_started[rank]
        self._num_started[rank] += 1
        name = f"{rank}#{number}"
        faulty = FaultyStore(self.store, self.schedule.faults, seed=f"{self.schedule.seed}/{name}")
        store = ProcessStore(faulty)
        with anyio.CancelScope() as scope:
            self._newest[rank] = store, scope
            try:
                self.finished[rank] = await self._train(rank, name, store)
            except RankTakenError:
                self.fenced.append(name)
            except AiodilocoError as exc:
                self.errors.append((name, exc))
        self.injected.update(faulty.injected)
        if len(self.finished) == self.schedule.world_size:
            self._all_finished.set()
        return name in self.fenced

    async def _train(self, rank: int, name: str, store: ProcessStore) -> str:
        schedule = self.schedule
        async with join(
            store,
            rank=rank,
            world_size=schedule.world_size,
            timeout=_ROUND_TIMEOUT_S,
            min_replicas=schedule.min_replicas,
            algorithm=schedule.algorithm,
            grace=3 * max(schedule.step_s),
        ) as replica:
            replica.transport = _Recording(replica.transport, self.contributed)  # type: ignore[assignment]
            model = make_model()
            inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            diloco = replica.diloco(
                model, inner, sync_every=schedule.sync_every, checkpoint_every=schedule.checkpoint_every
            )
            seen = diloco.round
            for step in diloco.steps(schedule.total_steps):
                train_step(model, inner, rank, step)
                await anyio.sleep(schedule.step_s[rank])
                await diloco.step()
                if diloco.round != seen:
                    seen = diloco.round
                    self.findings.append(Finding(name, seen, bits_of(model)))
            with diloco.outer_weights():
                return bits_of(model)


class _Recording:
    """The all-reduce itself, and a note of what was given to it."""

    def __init__(self, transport: ObjectStoreAllReduce, notes: dict[tuple[int, str], dict[str, Tensor]]) -> None:
        self._transport = transport
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def all_reduce(self, tensors: Mapping[str, Tensor], *, round: int, **options: Any) -> AllReduceReport:  # noqa: A002
        self._notes[round, str(self._transport.member)] = {name: tensor.clone() for name, tensor in tensors.items()}
        return await self._transport.all_reduce(tensors, round=round, **options)


def make_model() -> torch.nn.Module:
    """Return the model, the same on every replica."""
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) + number)
    return model


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    """Take an inner step that follows from rank and number alone."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(4, 5, generator=generator)
    optimizer.zero_grad()
    (model(x) - x[:, :3]).square().mean().backward()
    optimizer.step()


def bits_of(model: torch.nn.Module) -> str:
    """Return a digest of the model's parameters."""
    flat = [as_bytes(p.detach().reshape(-1).contiguous().view(torch.uint8)) for p in model.parameters()]
    return digest(*flat).hex()
