"""What the demo is asked to do."""

from __future__ import annotations

import dataclasses

__all__ = ["DemoSettings"]

_MAX_REPLICAS = 64  # of some 360 training files, each shard must hold a few
_MAX_EVALUATIONS = 16  # each costs rank 0 about four steps, and everyone waits for it


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """How many replicas train for how long.

    Attributes:
        replicas: Replicas of the DiLoCo run; one more trains alone.
        steps: Inner steps of every replica.
        sync_every: Inner steps per round.
        wire: Wire format of the pseudo-gradients.
        seed: Of initial weights and batches.

    Raises:
        ValueError: a number is out of range.
    """

    replicas: int = 4
    steps: int = 1000
    sync_every: int = 20
    wire: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= _MAX_REPLICAS:
            raise ValueError(f"replicas must be 1 to {_MAX_REPLICAS}, not {self.replicas}")
        for name, least in (("steps", 1), ("sync_every", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.sync_every > self.steps:
            raise ValueError(
                f"sync_every={self.sync_every} is more than steps={self.steps}, so no round would be complete; "
                "synchronise at least once in a run"
            )

    def evaluate_at(self) -> list[int]:
        """Return after which inner steps to evaluate: evenly chosen ends of rounds, but not the end of the run."""
        rounds = self.steps // self.sync_every
        stride = -(-rounds // _MAX_EVALUATIONS)
        ends = [number * self.sync_every for number in range(1, rounds + 1, stride)]
        return [end for end in ends if end < self.steps]
