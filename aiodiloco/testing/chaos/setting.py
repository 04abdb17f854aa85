"""What the processes of one trial know of it. No torch here: drivers start faster without."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Literal

from aiodiloco.testing.chaos.points import Role, point_named
from aiodiloco.testing.chaos.strikes import Strike, Strikes

__all__ = ["FIRST", "GO", "NUM_ROUNDS", "STRUCK", "WORLD_SIZE", "Setting", "train"]

WORLD_SIZE = 3
NUM_ROUNDS = 6

GO = "go"
STRUCK = "struck"
FIRST = "first"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how it strikes; crosses to the processes as JSON.

    Attributes:
        point: Name of the point; None: nobody is struck.
        blow: The signal that falls there.
        directory: Where strikes leave their marks, and processes signs of life.
        is_elastic: Whether rounds go on without a rank.
        hold: Where replicas wait for the file `go`: `halfway`, or all but rank 0 at the `end`.
    """

    point: str | None
    blow: Literal["SIGKILL", "SIGSTOP"]
    directory: str
    is_elastic: bool
    hold: Literal["halfway", "end"] | None = None

    def strikes_on(self, role: Role) -> Strikes:
        """Return what may fall on a process in this role."""
        directory, found = Path(self.directory), []
        point = None if self.point is None else point_named(self.point)
        if point is not None and point.first is not None and point.first[0] == role:
            found.append(Strike(point.first[1], signal.SIGKILL, directory / FIRST))
        if point is not None and point.victim == role:
            found.append(Strike(point.trigger, signal.Signals[self.blow], directory / STRUCK))
        return Strikes(directory, found)

    @property
    def first_death(self) -> int | None:
        """The rank that dies before the point, if one must."""
        first = None if self.point is None else point_named(self.point).first
        return None if first is None else first[0]


async def train(
    *,
    rank: int,
    setting: dict[str, str | bool | None],
    rendezvous_uri: str,
    world_size: int = WORLD_SIZE,
    incarnation: int = 0,
    as_rank: int | None = None,
) -> dict[str, str | int]:
    """Train as one replica; see `aiodiloco.testing.chaos.training`.

    Args:
        rank: As the executor counts.
        setting: A `Setting`, as a dict.
        rendezvous_uri: The run's.
        world_size: The run's.
        incarnation: How often this rank was started before.
        as_rank: The rank to be, where that is another one.
    """
    from aiodiloco.testing.chaos.training import train

    return await train(
        rank if as_rank is None else as_rank,
        Setting(**setting),  # type: ignore[arg-type]  # the fields of one, as JSON
        rendezvous_uri=rendezvous_uri,
        world_size=world_size,
        incarnation=incarnation,
    )
