"""Where chaos strikes: every named point, in one table."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from aiodiloco.testing.chaos.strikes import Moment, Trigger

__all__ = ["DRIVER", "POINTS", "Point", "Role", "point_named"]

Role: TypeAlias = int | Literal["driver"]

DRIVER: Literal["driver"] = "driver"
TRAINED = "trained"
HALFWAY = "halfway"

_ROUND = "rounds/00000003-0001/"  # of six; the model's fragment is 1
_LEASE = "lease/00000001.json"
_LAST_CHECKPOINT = "checkpoints/0000/00000004/"  # after round 3: one is taken every other round


@dataclasses.dataclass(frozen=True)
class Point:
    """One moment at which a replica or the driver may die.

    Attributes:
        name: What it is doing just then.
        victim: The rank it happens to, or the driver.
        trigger: When exactly.
        first: A replica that dies before that, and when, so that the point is reached at all.
    """

    name: str
    victim: Role
    trigger: Trigger
    first: tuple[int, Trigger] | None = None


def _replica(  # noqa: PLR0917 - a row of the table
    name: str, moment: Moment, operation: str, key: str, count: int = 1, rank: int = 1, *, after_death: bool = False
) -> Point:
    first = (rank, Trigger("before", "inner step", "7")) if after_death else None
    return Point(name, rank, Trigger(moment, operation, key, count), first)


def _driver(
    name: str, moment: Moment, operation: str, key: str, given: str | None = None, *, after_death: bool = False
) -> Point:
    first = (1, Trigger("before", "inner step", "7")) if after_death else None
    return Point(name, DRIVER, Trigger(moment, operation, key, given=given), first)


POINTS = (
    # Joining.
    _replica("before claiming its rank", "before", "put_if_absent", r"members/1/\d+/claim.json"),
    _replica("having claimed its rank", "after", "put_if_absent", r"members/1/\d+/claim.json"),
    _replica("joined, before its first round", "before", "put", r"rounds/00000000-0001/1-\d+/payload.json"),
    # Training alone.
    _replica("in an inner step", "before", "inner step", "7"),
    # Contributing to a round.
    _replica("before the first put of a round", "before", "put", _ROUND + r"1-\d+/payload.json"),
    _replica("in the middle of uploading a chunk", "during", "put", _ROUND + r"1-\d+/\d{6}"),
    _replica("between two chunks", "after", "put", _ROUND + r"1-\d+/\d{6}", 2),
    _replica("before its manifest", "before", "put", _ROUND + r"arrivals/1-\d+.json"),
    _replica("after its manifest", "after", "put", _ROUND + r"arrivals/1-\d+.json"),
    # Deciding a round.
    _replica("before the decision", "before", "put_if_absent", _ROUND + "decision.json", rank=0),
    _replica("in the middle of writing the decision", "during", "put_if_absent", _ROUND + "decision.json", rank=0),
    _replica("after the decision", "after", "put_if_absent", _ROUND + "decision.json", rank=0),
    # Forming the mean.
    _replica("as owner, reading a contribution", "after", "get", _ROUND + r"0-\d+/\d{6}"),
    _replica("as owner, before its part of the mean", "before", "put", _ROUND + r"reduced/\w+/\d{6}"),
    _replica("as owner, with half of its part written", "after", "put", _ROUND + r"reduced/\w+/\d{6}"),
    _replica("reading the mean", "after", "get", _ROUND + r"reduced/\w+/\d{6}"),
    # Taking the outer step.
    _replica("in the outer step", "after", "outer step", "3"),
    # Writing a checkpoint.
    _replica("before its share of a checkpoint", "before", "put", _LAST_CHECKPOINT + "outer-00001-0000.safetensors"),
    _replica("in the middle of writing its share", "during", "put", _LAST_CHECKPOINT + "parts/00001.json"),
    _replica("having written its share", "after", "put", _LAST_CHECKPOINT + "parts/00001.json"),
    # Deleting what is not needed any more.
    _replica("deleting an old round", "before", "delete", r"rounds/.*"),
    # Coming back.
    _replica("coming back, reading the checkpoint", "after", "get", r"checkpoints/.*safetensors", after_death=True),
    _replica("coming back, taking rounds it missed", "after", "get", r"rounds/.*decision.json", after_death=True),
    # Done.
    _replica("in the last outer step", "after", "outer step", "5"),
    _replica("about to leave", "before", "leave", ""),
    # Launching.
    _driver("driver, before recording the run", "before", "put_if_absent", "run.json"),
    _driver("driver, having recorded the run", "after", "put_if_absent", "run.json"),
    _driver("driver, having won the lease", "after", "put_if_absent", _LEASE),
    _driver("driver, replica spawned, not journaled", "before", "put_if_absent", "calls/1-0.json"),
    _driver("driver, half of the replicas journaled", "after", "put_if_absent", "calls/1-0.json"),
    # Driving.
    _driver("driver, mid-run", "before", "put", _LEASE, HALFWAY),
    _driver("driver, restart recorded, not made", "after", "put_if_absent", "starts/1-1.json", after_death=True),
    _driver("driver, replica restarted, not journaled", "before", "put_if_absent", "calls/1-1.json", after_death=True),
    # Collecting.
    _driver("driver, while collecting", "before", "put", _LEASE, TRAINED),
    _driver("driver, before the result", "before", "put_if_absent", "result.json"),
    _driver("driver, after the result", "after", "put_if_absent", "result.json"),
)
"""All of them. The numbers in the keys belong to `aiodiloco.testing.chaos.training`."""


def point_named(name: str) -> Point:
    """Return the point of this name.

    Raises:
        ValueError: there is none.
    """
    for point in POINTS:
        if point.name == name:
            return point
    raise ValueError(f"no point {name!r}: choose one of {', '.join(repr(point.name) for point in POINTS)}")
