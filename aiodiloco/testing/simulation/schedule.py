"""What happens to a simulated run: everything that is not the library's doing, made of one seed."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiodiloco.executors.policy import FailFast, Quorum, Respawn, WaitAll
from aiodiloco.testing.faulty_store import Faults

if TYPE_CHECKING:
    from aiodiloco.executors.policy import KnownPolicy, RunPolicy

__all__ = ["DriverPlan", "Event", "PlaneFaults", "Schedule", "make_schedule"]

What: TypeAlias = Literal["kill", "rerun", "pause", "duplicate", "partition", "cancel"]
ComesBack: TypeAlias = Literal["launch", "attach", "reap"]


_LATENCIES_S = [0.0, 0.005, 0.1, 1.0]  # at 1 s decisions cross; too much for the shortest lease of a driver


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens to the newest process of a rank, or to the newest driver.

    Attributes:
        at_s: When, in virtual seconds from the start.
        what: `kill`: it stops in the middle of whatever it does. `rerun`: the same, and the control plane starts it
            again, unseen by its driver. `pause`: it stands still for a while, as under SIGSTOP. `duplicate`: another
            process of the same rank, or another driver, starts while it lives. `partition`: nothing it sends arrives
            for a while. `cancel`: somebody wants the run ended.
        rank: Whose; None is the driver.
        for_s: How long a pause or partition lasts, or after which time a killed process is started again.
    """

    at_s: float
    what: What
    rank: int | None
    for_s: float


@dataclasses.dataclass(frozen=True)
class PlaneFaults:
    """What a control plane does wrong: rates from 0 to 1, for each request by itself.

    Attributes:
        refused: A spawn fails, and starts nothing.
        lost_spawn: A spawn starts a process, and its reply is lost.
        lost_cancel: The order to end a process never arrives, and its asker is told so.
        latency_s: Seconds a request takes, on average.
    """

    refused: float = 0.0
    lost_spawn: float = 0.0
    lost_cancel: float = 0.0
    latency_s: float = 0.1


@dataclasses.dataclass(frozen=True)
class DriverPlan:
    """How the run is launched, and by whom it is driven on.

    Attributes:
        policy, timeout_s, max_gpu_seconds: As given to `launch`.
        lease_s: Likewise; None lets replicas go on without a driver.
        patience_s: How long a driver's client repeats requests to a store that fails.
        plane: What the control plane does.
        comes_back: What is called after a driver has died: `launch` by a service that is restarted, `attach`, or
            `reap`; None is nothing.
        back_s: How long after.
    """

    policy: RunPolicy
    timeout_s: float
    max_gpu_seconds: float | None
    lease_s: float | None
    patience_s: float
    plane: PlaneFaults
    comes_back: ComesBack | None
    back_s: float


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One simulated run.

    Attributes:
        world_size: Number of ranks.
        min_replicas: As given to `join`.
        sync_every: Inner steps per round.
        num_rounds: Rounds of the whole run.
        checkpoint_every: Rounds between checkpoints.
        algorithm: How means are formed.
        step_s: Seconds an inner step takes, by rank.
        start_s: When each rank starts, where there is no driver.
        faults: What the way to the store does.
        events: In order of time.
        driver: How the run is driven; None where replicas are started by hand, each again after its end.
    """

    seed: int
    world_size: int
    min_replicas: int
    sync_every: int
    num_rounds: int
    checkpoint_every: int
    algorithm: Literal["gather", "scatter"]
    step_s: tuple[float, ...]
    start_s: tuple[float, ...]
    faults: Faults
    events: tuple[Event, ...]
    driver: DriverPlan | None = None

    @property
    def total_steps(self) -> int:
        """Inner steps of the whole run."""
        return self.sync_every * self.num_rounds


def make_schedule(seed: int, *, faults: Faults | None = None) -> Schedule:
    """Return the schedule that `seed` stands for: odd ones have a driver.

    Args:
        seed: Any int; the same one gives the same schedule.
        faults: Instead of those that the seed chooses.
    """
    chance = random.Random(seed)  # noqa: S311 - a simulation must repeat
    world_size = chance.randint(2, 4)
    sync_every, num_rounds = chance.randint(1, 3), chance.randint(3, 6)
    pace = chance.choice([0.1, 1.0, 3.0])  # to a beat of 5 s: many steps, or several beats a round
    length_s = sync_every * num_rounds * pace
    is_driven = seed % 2 == 1
    events = [_event(chance, length_s, chance.randrange(world_size), is_driven) for _ in range(chance.randint(0, 5))]
    rate = chance.choice([0.0, 0.0, 0.02, 0.2])
    chosen = Faults(
        unavailable=rate * chance.random(),
        lost_reply=rate * chance.random(),
        truncated=rate * chance.random() / 3,
        flipped=rate * chance.random() / 3,
        stale_list=rate * chance.random() / 20,  # the probe takes more for what it is
        latency_s=chance.choice([0.0, 0.005, 0.1] if is_driven else _LATENCIES_S),
    )
    schedule = Schedule(
        seed=seed,
        world_size=world_size,
        min_replicas=chance.choice([world_size, max(1, world_size - 1), 1]),
        sync_every=sync_every,
        num_rounds=num_rounds,
        checkpoint_every=chance.randint(1, 3),
        algorithm=chance.choice(["gather", "scatter"]),
        step_s=tuple(pace * chance.uniform(0.8, chance.choice([1.2, 5.0])) for _ in range(world_size)),
        start_s=tuple(chance.choice([0.0, 0.0, 3.0, 30.0]) * chance.random() for _ in range(world_size)),
        faults=faults or chosen,
        events=_in_order(events),
    )
    return _with_driver(schedule, chance, length_s) if is_driven else schedule


def _with_driver(schedule: Schedule, chance: random.Random, length_s: float) -> Schedule:
    lease_s = chance.choice([6.0, 6.0, 30.0, 60.0, None])
    rate = chance.choice([0.0, 0.0, 0.05, 0.3])
    plan = DriverPlan(
        policy=_policy(chance, schedule.world_size),
        timeout_s=chance.choice([4 * 3600.0] * 6 + [length_s * chance.uniform(0.3, 3.0)]),
        max_gpu_seconds=chance.choice([None] * 6 + [length_s * schedule.world_size * chance.uniform(0.3, 3.0)]),
        lease_s=lease_s,
        patience_s=chance.choice([0.5, 10.0, 10.0]),
        plane=PlaneFaults(
            refused=rate * chance.random(),
            lost_spawn=rate * chance.random(),
            lost_cancel=rate * chance.random(),
            latency_s=chance.choice([0.01, 0.3, 3.0]),
        ),
        comes_back=chance.choice(["launch", "launch", "attach", "reap", None]),
        back_s=chance.choice([0.0, 1.0, 10.0, 100.0]) * chance.uniform(0.5, 2.0),
    )
    events = [_event(chance, length_s + 5.0, None, is_driven=True) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
    return dataclasses.replace(schedule, driver=plan, events=_in_order([*schedule.events, *events]))


def _event(chance: random.Random, length_s: float, rank: int | None, is_driven: bool) -> Event:
    what: list[What] = ["kill", "kill", "pause", "duplicate"]
    if is_driven:
        what += ["partition", "rerun"] if rank is not None else ["kill", "pause", "partition", "cancel"]
    return Event(
        at_s=chance.uniform(0, 1.5 * length_s),
        what=chance.choice(what),
        rank=rank,
        for_s=chance.choice([0.5, 5.0, 60.0]) * chance.uniform(0.5, 2.0),
    )


def _policy(chance: random.Random, world_size: int) -> RunPolicy:
    most = max(1, world_size - 1)
    goals: list[KnownPolicy] = [FailFast(), WaitAll(), Quorum(most), Quorum(most, rest="wait")]
    goal = chance.choice(goals)
    if chance.random() < 0.25:
        return goal
    backoff = chance.choice([0.0, 1.0, 10.0])
    return Respawn(chance.choice([1, 5, 20]), chance.choice([2, 20]), backoff, then=goal)


def _in_order(events: list[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: event.at_s))
