"""What the demo is asked to do."""

from __future__ import annotations

import dataclasses

__all__ = ["DemoSettings"]

_MAX_REPLICAS = 64  # of some 360 training files, each shard must hold a few
_MAX_AWAY_S = 3600.0
_MAX_EVALUATIONS = 12  # each takes rank 0 as long as eight inner steps, and the others wait for it


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """How many replicas train for how long.

    Attributes:
        replicas: Replicas of the DiLoCo run; one more trains alone.
        steps: Inner steps of every replica.
        sync_every: Inner steps per round.
        wire: Wire format of the pseudo-gradients.
        seed: Of initial weights and batches.
        kill: Whether one replica of several is killed halfway, on purpose, to show that it comes back.
        away: Seconds before it is started again; None takes a few, more in a long run, so that the others can be seen
            to go on without it.

    Raises:
        ValueError: a number is out of range.
    """

    replicas: int = 4
    steps: int = 1000
    sync_every: int = 20
    wire: str = "bf16"
    seed: int = 0
    kill: bool = True
    away: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= _MAX_REPLICAS:
            raise ValueError(f"replicas must be 1 to {_MAX_REPLICAS}, not {self.replicas}")
        for name, least in (("steps", 1), ("sync_every", 1), ("seed", 0)):
            if not least <= (value := getattr(self, name)) < 2**63:
                raise ValueError(f"{name} must be at least {least} and less than 2**63, not {value}")
        if self.away is not None and not 0 <= self.away <= _MAX_AWAY_S:
            raise ValueError(f"away must be 0 to {_MAX_AWAY_S:g} seconds, not {self.away!r}")
        if self.sync_every > self.steps:
            raise ValueError(
                f"sync_every={self.sync_every} is more than steps={self.steps}, so no round would be complete; "
                "synchronise at least once in a run"
            )

    @property
    def num_rounds(self) -> int:
        """Outer steps of the run; the last round may be shorter."""
        return -(-self.steps // self.sync_every)

    @property
    def victim(self) -> int | None:
        """The rank that is killed once half of the rounds are done, or None: someone must be left to go on."""
        return self.replicas - 1 if self.kill and self.replicas > 1 and self.num_rounds > 1 else None

    @property
    def pause_s(self) -> float:
        """Seconds before a replica that was killed is started again."""
        return min(max(5.0, self.steps / 125), 8.0) if self.away is None else self.away

    def evaluate_at(self) -> list[int]:
        """Return after which inner steps to evaluate: evenly spread ends of rounds, but not the end of the run."""
        rounds = self.steps // self.sync_every
        number = min(rounds, _MAX_EVALUATIONS)
        ends = [i * rounds // number * self.sync_every for i in range(1, number + 1)]
        return [end for end in ends if end < self.steps]
