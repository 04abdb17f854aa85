"""What the demo found: two losses, and the bytes it took."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiodiloco import Event
    from aiodiloco.demo.chronicle import Outage, RoundSeen
    from aiodiloco.demo.settings import DemoSettings
    from aiodiloco.records import JSON

__all__ = ["Curve", "DemoReport", "data_parallel_bytes", "held_out_curve", "steps_in_rounds"]

Curve = list[tuple[int, float]]
"""(inner step, held-out loss) in order."""


@dataclasses.dataclass(frozen=True)
class DemoReport:
    """The demo's numbers. Losses are means per byte in nats, over the same held-out windows.

    Attributes:
        settings: What was asked for.
        num_parameters: Of the model.
        diloco: Held-out loss of the outer weights by inner step; the last is after all of them.
        alone: Held-out loss of the replica that trained alone, at the same steps.
        tokens_per_replica: Bytes of text that a replica which is in every round trains on, repeats included.
        tokens_together: Bytes of text that went into the DiLoCo run's rounds, by all replicas that were in them.
        rounds: Outer steps taken.
        bytes_sent: Bytes written in all rounds by a replica that was never away, on average; without checkpoints.
        bytes_received: Bytes read, likewise.
        replicas_agree: Whether all replicas ended with the same outer weights to the last bit.
        participation: The DiLoCo run's rounds, in order.
        outages: Its replicas that ended before their time.
        seconds: From the first launch to the last result.
    """

    settings: DemoSettings
    num_parameters: int
    diloco: Curve
    alone: Curve
    tokens_per_replica: int
    tokens_together: int
    rounds: int
    bytes_sent: int
    bytes_received: int
    replicas_agree: bool
    participation: Sequence[RoundSeen]
    outages: Sequence[Outage]
    seconds: float

    @property
    def diloco_loss(self) -> float:
        """Held-out loss of the outer weights at the end."""
        return self.diloco[-1][1]

    @property
    def alone_loss(self) -> float:
        """Held-out loss of the replica alone at the end."""
        return self.alone[-1][1]

    @property
    def diloco_wins(self) -> bool:
        """Whether training together paid: a lower loss than alone. False when either is not a number."""
        return self.diloco_loss < self.alone_loss

    @property
    def is_good(self) -> bool:
        """Whether the demo shows what it should: DiLoCo wins, and all replicas hold the same weights."""
        return self.diloco_wins and self.replicas_agree

    @property
    def bytes_exchanged(self) -> int:
        """Bytes written and read by a replica."""
        return self.bytes_sent + self.bytes_received

    @property
    def data_parallel_bytes(self) -> int:
        """Bytes a replica would have sent and received in data-parallel training of as many steps."""
        return data_parallel_bytes(self.num_parameters, steps=self.settings.steps, replicas=self.settings.replicas)

    @property
    def times_less(self) -> float:
        """How many times as many bytes data-parallel training would have exchanged; 0 for a single replica."""
        return self.data_parallel_bytes / self.bytes_exchanged if self.bytes_exchanged else 0.0

    def to_dict(self) -> dict[str, JSON]:
        """Return all of it as JSON values."""
        return {
            **dataclasses.asdict(self),
            "diloco_loss": self.diloco_loss,
            "alone_loss": self.alone_loss,
            "diloco_wins": self.diloco_wins,
            "data_parallel_bytes": self.data_parallel_bytes,
        }


def data_parallel_bytes(num_parameters: int, *, steps: int, replicas: int) -> int:
    """Return the bytes a replica sends and receives when fp32 gradients are averaged in a ring at every step.

    A ring all-reduce moves `(N - 1) / N` of the gradient twice, once to reduce and once to gather, out of every replica
    and into it: `2 directions · 2 (N - 1) / N · 4 bytes · parameters · steps`.
    """
    return 2 * 2 * (replicas - 1) * 4 * num_parameters * steps // replicas


def steps_in_rounds(participation: Iterable[RoundSeen], replicas: int) -> int:
    """Return how many inner steps went into the rounds' means, over all replicas that were in them."""
    total, before = 0, 0
    for seen in participation:
        total += (seen.step - before) * (replicas - len(seen.absent))
        before = seen.step
    return total


def held_out_curve(events: Iterable[Event], *, last: tuple[int, float]) -> Curve:
    """Return the evaluations reported in the event log of a run, and after them the `last`."""
    found = [event.data for event in events if "held_out_loss" in event.data]
    return [*((cast("int", d["step"]), float(cast("float", d["held_out_loss"]))) for d in found), last]
