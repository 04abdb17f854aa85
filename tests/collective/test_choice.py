"""Who is in a round, case by case."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiodiloco.collective.choice import Rules, choose
from aiodiloco.collective.decision import Manifest
from aiodiloco.collective.keys import Member

A, B, C, D = (Member(rank, 0) for rank in range(4))
B1 = Member(1, 1)
OK = Manifest(1, 1.0, "same")
NAN = Manifest(1, 1.0, "same", "layer.weight")
OTHER = Manifest(1, 1.0, "other")


def norm(value: float) -> Manifest:
    return Manifest(1, 1.0, "same", norm=value)


@pytest.mark.parametrize(
    "case",
    [
        # all there: no reason to wait
        ([A, B, C], {A: OK, B: OK, C: OK}, 3, False, [A, B, C], []),
        ([A, B, C], {A: OK, B: OK, C: OK}, 2, False, [A, B, C], []),
        # someone is late
        ([A, B, C], {A: OK, B: OK}, 2, False, None, None),
        ([A, B, C], {A: OK, B: OK}, 2, True, [A, B], []),
        ([A, B, C], {A: OK, B: OK}, 3, True, None, None),
        ([A, B, C], {}, 1, True, None, None),
        ([A, B], {A: OK, B: OK}, 3, False, None, None),
        # who was not expected is in if it came in time, but nobody waits for it
        ([A, B], {A: OK, B: OK, D: OK}, 2, False, [A, B, D], []),
        ([A, B], {A: OK, D: OK}, 2, False, None, None),
        # a restarted rank: the later incarnation counts, also where the earlier was expected, but not the reverse
        ([A, B], {A: OK, B1: OK}, 2, False, [A, B1], []),
        ([A, B], {A: OK, B: OK, B1: OK}, 2, False, [A, B1], [B]),
        ([A, B1], {A: OK, B: OK}, 2, False, None, None),
        ([A, B1], {A: OK, B: OK}, 2, True, [A, B], []),
        # poison is left out by name, if enough others are left
        ([A, B, C], {A: OK, B: NAN, C: OK}, 2, False, [A, C], [B]),
        ([A, B, C], {A: OK, B: NAN, C: OK}, 3, False, [], [B]),
        ([A, B, C], {A: OK, B: NAN}, 2, True, None, None),
        ([A, B, C, D], {A: norm(1), B: norm(2), C: norm(1.5), D: norm(1000)}, 2, False, [A, B, C], [D]),
        ([A, B, C, D], {A: norm(1), B: norm(2), C: norm(1.5), D: norm(99)}, 2, False, [A, B, C, D], []),
        ([A, B], {A: norm(1), B: norm(1e9)}, 1, False, [A, B], []),
        ([A, B, C], {A: norm(0), B: norm(0), C: norm(5)}, 1, False, [A, B, C], []),
        # who differs from the majority is out; without a majority nobody knows who is right
        ([A, B, C], {A: OK, B: OTHER, C: OK}, 2, False, [A, C], [B]),
        ([A, B, C], {A: OK, B: OTHER, C: OK}, 3, False, [], [B]),
        ([A, B], {A: OK, B: OTHER}, 1, False, [], [A, B]),
    ],
)
def test_choice(case) -> None:
    expected, arrived, min_members, is_over, members, excluded = case
    choice = choose(expected, arrived, Rules(min_members, max_norm_ratio=100), is_over=is_over)
    if members is None:
        assert choice is None
    else:
        assert choice is not None
        assert list(choice.members) == members
        assert sorted(choice.excluded) == excluded


def test_a_refusal_says_whether_contributions_differ_or_are_bad() -> None:
    differ = choose([A, B], {A: OK, B: OTHER}, Rules(2), is_over=False)
    bad = choose([A, B], {A: OK, B: NAN}, Rules(2), is_over=False)
    assert differ is not None
    assert bad is not None
    assert (differ.differ, bad.differ) == (True, False)
    assert "layer.weight" in bad.excluded[B]


MEMBERS = st.builds(Member, st.integers(0, 5), st.integers(0, 2))
ARRIVALS = st.builds(
    Manifest,
    st.just(1),
    st.floats(0.1, 10),
    st.sampled_from(["same", "same", "other"]),
    st.sampled_from([None, None, None, "w"]),
    st.one_of(st.none(), st.floats(0, 1e6)),
)


@given(st.sets(MEMBERS), st.dictionaries(MEMBERS, ARRIVALS), st.integers(1, 6), st.booleans())
def test_whatever_arrives_a_round_is_sound(expected, arrived, min_members, is_over) -> None:
    """One member per rank, all of one kind and finite, at least so many; and every arrival is in or out by name."""
    choice = choose(expected, arrived, Rules(min_members, max_norm_ratio=math.inf), is_over=is_over)
    if choice is None:
        return
    assert not choice.members.keys() & choice.excluded.keys()
    if choice.members:
        assert choice.members.keys() | choice.excluded.keys() == arrived.keys()
    else:
        assert choice.excluded
    ranks = [member.rank for member in choice.members]
    assert len(ranks) == len(set(ranks))
    if choice.members:
        assert len(ranks) >= min_members
        assert len({arrived[m].agreement for m in choice.members}) == 1
        assert all(arrived[m].non_finite is None for m in choice.members)
        assert all(choice.members[m] == arrived[m].weight for m in choice.members)


@given(st.sets(MEMBERS), st.dictionaries(MEMBERS, ARRIVALS), st.integers(1, 6))
def test_waiting_longer_never_loses_a_round(expected, arrived, min_members) -> None:
    """What is decided without time pressure is decided the same when time is up."""
    rules = Rules(min_members)
    before, after = choose(expected, arrived, rules, is_over=False), choose(expected, arrived, rules, is_over=True)
    assert before is None or before == after
