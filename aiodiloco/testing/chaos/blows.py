"""What can happen at a point."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from aiodiloco.testing.chaos.points import DRIVER, HALFWAY

if TYPE_CHECKING:
    from aiodiloco.testing.chaos.points import Point

__all__ = ["Blow", "blows_for"]


class Blow(StrEnum):
    """What happens at the point, and afterwards."""

    restarted = "SIGKILL, started again"
    lost = "SIGKILL, not started again"
    continued = "SIGSTOP, later SIGCONT"
    replaced = "SIGSTOP, replaced, then SIGCONT"
    attached = "SIGKILL, attached to"
    deposed = "SIGSTOP, attached to, then SIGCONT"
    abandoned = "SIGKILL, nobody comes"

    @property
    def signal(self) -> Literal["SIGKILL", "SIGSTOP"]:
        """Name of the signal."""
        return "SIGKILL" if self.value.startswith("SIGKILL") else "SIGSTOP"

    @property
    def is_elastic(self) -> bool:
        """Whether rounds go on without the victim; else they wait for it."""
        return self in (Blow.lost, Blow.continued)


def blows_for(point: Point) -> tuple[Blow, ...]:
    """Return what can be done at a point."""
    if point.victim != DRIVER:
        if point.first is not None:  # then somebody must start replicas again
            return (Blow.restarted, Blow.continued)
        return (Blow.restarted, Blow.lost, Blow.continued, Blow.replaced)
    if point.trigger.given == HALFWAY:
        return (Blow.attached, Blow.deposed, Blow.abandoned)
    return (Blow.attached, Blow.deposed)
