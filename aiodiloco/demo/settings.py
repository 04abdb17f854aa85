"""What the demo is asked to do."""

from __future__ import annotations

import dataclasses

__all__ = ["DemoSettings"]

_MAX_REPLICAS = 64  # of some 360 training files, each shard must hold a few
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
            if not least <= (value := getattr(self, name)) < 2**63:
                raise ValueError(f"{name} must be at least {least} and less than 2**63, not {value}")
        if self.sync_every > self.steps:
            raise ValueError(
                f"sync_every={self.sync_every} is more than steps={self.steps}, so no round would be complete; "
                "synchronise at least once in a run"
            )

    def evaluate_at(self) -> list[int]:
        """Return after which inner steps to evaluate: evenly spread ends of rounds, but not the end of the run."""
        rounds = self.steps // self.sync_every
        number = min(rounds, _MAX_EVALUATIONS)
        ends = [i * rounds // number * self.sync_every for i in range(1, number + 1)]
        return [end for end in ends if end < self.steps]
