"""What happens to a simulated run: everything that is not the library's doing, made of one seed."""

from __future__ import annotations

import dataclasses
import random
from typing import Literal, TypeAlias

from aiodiloco.testing.faulty_store import Faults

__all__ = ["Event", "Schedule", "make_schedule"]

What: TypeAlias = Literal["kill", "pause", "duplicate"]


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happens to the newest process of a rank.

    Attributes:
        at_s: When, in virtual seconds from the start.
        what: `kill`: it stops in the middle of whatever it does. `pause`: it stands still for a while, as under
            SIGSTOP. `duplicate`: another process of the same rank starts while it lives.
        rank: Whose.
        for_s: How long a pause lasts, or after which time a killed process is started again.
    """

    at_s: float
    what: What
    rank: int
    for_s: float


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
        start_s: When each rank starts.
        faults: What the way to the store does.
        events: In order of time.
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

    @property
    def total_steps(self) -> int:
        """Inner steps of the whole run."""
        return self.sync_every * self.num_rounds


def make_schedule(seed: int, *, faults: Faults | None = None) -> Schedule:
    """Return the schedule that `seed` stands for.

    Args:
        seed: Any int; the same one gives the same schedule.
        faults: Instead of those that the seed chooses.
    """
    chance = random.Random(seed)  # noqa: S311 - a simulation must repeat
    world_size = chance.randint(2, 4)
    sync_every, num_rounds = chance.randint(1, 3), chance.randint(3, 6)
    pace = chance.choice([0.1, 1.0, 10.0])
    length_s = sync_every * num_rounds * pace
    events = [
        Event(
            at_s=chance.uniform(0, 1.5 * length_s),
            what=chance.choice(["kill", "kill", "pause", "duplicate"]),
            rank=chance.randrange(world_size),
            for_s=chance.choice([0.5, 5.0, 60.0]) * chance.uniform(0.5, 2.0),
        )
        for _ in range(chance.randint(0, 5))
    ]
    rate = chance.choice([0.0, 0.0, 0.02, 0.2])
    chosen = Faults(
        unavailable=rate * chance.random(),
        lost_reply=rate * chance.random(),
        truncated=rate * chance.random() / 3,
        flipped=rate * chance.random() / 3,
        stale_list=rate * chance.random() / 20,  # the probe takes more for what it is
        latency_s=chance.choice([0.0, 0.005, 0.1]),
    )
    return Schedule(
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
        events=tuple(sorted(events, key=lambda event: event.at_s)),
    )
