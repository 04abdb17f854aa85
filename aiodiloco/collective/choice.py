"""Who is in a round: a pure function of who was expected, what has arrived, and whether time is up."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from aiodiloco.collective.decision import Manifest
    from aiodiloco.collective.keys import Member

__all__ = ["Choice", "Rules", "choose", "who_is_late"]

_FEWEST_TO_JUDGE = 3  # of two norms that differ, nobody can say which is absurd


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a round needs.

    Attributes:
        min_members: With fewer good contributions there is no round.
        max_norm_ratio: A contribution with a norm this many times the median's is poison.
    """

    min_members: int
    max_norm_ratio: float = math.inf


@dataclasses.dataclass(frozen=True)
class Choice:
    """What becomes of a round.

    Attributes:
        members: Who is in it, with which weight; empty if it is refused.
        excluded: Who contributed in vain, and why.
        differ: Too few contributions agree with each other: that, and not time or values, is why it is refused.
    """

    members: Mapping[Member, float]
    excluded: Mapping[Member, str]
    differ: bool = False


def choose(
    expected: Collection[Member], arrived: Mapping[Member, Manifest], rules: Rules, *, is_over: bool
) -> Choice | None:
    """Return what becomes of the round, or None while it is worth waiting.

    All good contributions that are there are in, expected or not. Of a rank that came twice, the later incarnation is.

    Args:
        expected: Whom to wait for. A later incarnation of the same rank will do.
        arrived: Whose contribution is whole.
        rules: What the round needs.
        is_over: Whether the round has waited long enough for those who are late.
    """
    latest = {member.rank: member for member in sorted(arrived)}
    late = who_is_late(expected, arrived)
    if late and not is_over:
        return None
    superseded = {m: f"taken over by {latest[m.rank]}" for m in arrived if latest[m.rank] != m}
    excluded: dict[Member, str] = {}
    good = {m: arrived[m] for m in latest.values()}
    for find in (_who_differs, _who_is_not_finite, lambda g: _whose_norm_is_absurd(g, rules.max_norm_ratio)):
        if found := find(good):
            excluded |= found
            good = {m: a for m, a in good.items() if m not in found}
    if len(good) >= rules.min_members:
        return Choice({m: a.weight for m, a in sorted(good.items())}, superseded | excluded)
    if late or not excluded:
        return None
    return Choice({}, superseded | excluded, differ=len({a.agreement for a in arrived.values()}) > 1)


def who_is_late(expected: Collection[Member], arrived: Collection[Member]) -> list[Member]:
    """Return the expected members of whom neither they nor a later process of their rank have arrived."""
    latest = {member.rank: member.incarnation for member in sorted(arrived)}
    return [member for member in expected if latest.get(member.rank, -1) < member.incarnation]


def _who_differs(arrived: Mapping[Member, Manifest]) -> dict[Member, str]:
    """Return all that do not agree with the majority; all, if there is none: nobody knows who is right."""
    counts = Counter(manifest.agreement for manifest in arrived.values()).most_common()
    if len(counts) < 2:
        return {}
    agreement, count = counts[0]
    right = agreement if 2 * count > len(arrived) else None
    return {m: "its contribution differs in kind from the others'" for m, a in arrived.items() if a.agreement != right}


def _who_is_not_finite(arrived: Mapping[Member, Manifest]) -> dict[Member, str]:
    return {m: f"NaN or infinite values in {a.non_finite!r}" for m, a in arrived.items() if a.non_finite is not None}


def _whose_norm_is_absurd(arrived: Mapping[Member, Manifest], ratio: float) -> dict[Member, str]:
    norms = {m: a.norm for m, a in arrived.items() if a.norm is not None}
    if len(norms) < _FEWEST_TO_JUDGE:
        return {}
    median = statistics.median_low(norms.values())
    return {
        m: f"a norm of {norm:.3g}, {norm / median:.3g} times the median of {median:.3g}"
        for m, norm in norms.items()
        if norm > ratio * median > 0
    }
