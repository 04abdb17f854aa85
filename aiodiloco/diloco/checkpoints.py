"""When a `DiLoCo` takes checkpoints, and of what."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiodiloco.checkpoint import Loaded, Share
    from aiodiloco.diloco.snapshot import Stateful

__all__ = ["Checkpoints"]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When a `DiLoCo` takes checkpoints, and of what.

    Attributes:
        every: Rounds between two checkpoints, >= 1.
        rank: This rank.
        model_number: Which of the run's models, from 0.
        save: Writes this replica's share; returns as soon as it has taken it over.
        load: Returns the run's latest checkpoint of this model.
        state: What the training loop wants kept with it, by name.
    """

    every: int
    rank: int
    model_number: int
    save: Callable[[Share], Awaitable[None]]
    load: Callable[[], Awaitable[Loaded]]
    state: Mapping[str, Stateful] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"checkpoint_every must be an int >= 1 (rounds between checkpoints), not {self.every!r}")
        for name, part in self.state.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise TypeError(
                    f"state[{name!r}] is a {type(part).__qualname__}: what a checkpoint keeps needs state_dict() and "
                    "load_state_dict()"
                )
