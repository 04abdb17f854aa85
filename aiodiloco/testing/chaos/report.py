"""What came of a trial, by the run's own store, and whether it is what it should be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from aiodiloco.collective.decision import Decision
from aiodiloco.collective.keys import RoundKeys
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.events import read_events
from aiodiloco.store import open_store
from aiodiloco.testing.chaos.blows import Blow
from aiodiloco.testing.chaos.setting import NUM_ROUNDS, WORLD_SIZE
from aiodiloco.testing.chaos.training import final_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiodiloco.collective.keys import Member
    from aiodiloco.records import ReplicaResult
    from aiodiloco.store import Store

__all__ = ["Report", "judge", "read_rounds"]

QUORUM = 2

_FRAGMENT = 1


@dataclasses.dataclass
class Report:
    """What came of a trial.

    Attributes:
        point: Where it struck.
        blow: What happened there.
        executor: Where replicas ran.
        outcome: In a few words.
        members: The processes of every round, as decided: `<rank>-<incarnation>`.
        is_equal: Whether the final outer parameters of every rank that finished are, to the bit, those of an
            undisturbed run, if all ranks were in all rounds; else those that these members must come to. None: no rank
            was to finish.
        rounds_missed: Rounds decided without the victim until it was in one again; None: it did not come back.
        lost: Ranks that were missing in a round.
        seconds: From the blow to the end of the run.
        problems: What should not be.
    """

    point: str
    blow: str
    executor: str
    outcome: str = ""
    members: list[list[str]] = dataclasses.field(default_factory=list)
    is_equal: bool | None = None
    rounds_missed: int | None = None
    lost: list[int] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


async def read_rounds(store: Store) -> list[frozenset[Member]]:
    """Return who was in each round that was decided, as decided."""
    rounds: list[frozenset[Member]] = []
    while True:
        try:
            data = await store.get(RoundKeys(len(rounds), _FRAGMENT).decision)
        except KeyNotFoundError:
            return rounds
        rounds.append(frozenset(Decision.from_json(data).members))


async def judge(report: Report, blow: Blow, uri: str, rows: Sequence[ReplicaResult], victim: int | None) -> None:
    """Fill in what came of it, and every problem there is.

    Args:
        report: To fill in.
        blow: What happened.
        uri: Of the run.
        rows: How each rank ended, in the end.
        victim: The rank that was struck; None for the driver.
    """
    async with open_store(uri) as store:
        rounds = await read_rounds(store)
        seen = await _participation(store)
    report.members = [sorted(map(str, members)) for members in rounds]
    ranks = [sorted(member.rank for member in members) for members in rounds]
    report.lost = sorted(rank for rank in range(WORLD_SIZE) if any(rank not in members for members in ranks))
    report.problems += _wrong_rounds(ranks, is_elastic=blow.is_elastic)
    if victim is not None and len(ranks) == NUM_ROUNDS and victim in ranks[-1]:
        report.rounds_missed = sum(victim not in members for members in ranks)
    if blow is Blow.abandoned:
        report.problems += _not_ended_by_lease(rows)
        return
    report.problems += _wrong_participation(ranks, seen)
    expected = final_weights(ranks, is_elastic=blow.is_elastic)
    finished = {row.rank: row.result["digest"] for row in rows if isinstance(row.result, dict)}
    report.is_equal = set(finished.values()) == {expected}
    if not report.is_equal:
        report.problems.append(f"final outer parameters are {finished}, not {expected}")
    report.problems += _wrong_ends(rows, blow, victim)


def _wrong_rounds(ranks: Sequence[Sequence[int]], *, is_elastic: bool) -> list[str]:
    problems = []
    for number, members in enumerate(ranks):
        if len(set(members)) != len(members):
            problems.append(f"round {number} has a rank twice: {members}")
        if len(members) < (QUORUM if is_elastic else WORLD_SIZE):
            problems.append(f"round {number} has too few members: {members}")
    return problems


def _wrong_participation(ranks: Sequence[Sequence[int]], seen: Mapping[int, set[tuple[object, ...]]]) -> list[str]:
    """Return where the event log says otherwise than the decisions."""
    return [
        f"ranks {members} are in round {number}, and of who is not the event log says {seen.get(number)}"
        for number, members in enumerate(ranks)
        if seen.get(number) != {tuple(sorted(set(range(WORLD_SIZE)) - set(members)))}
    ]


def _wrong_ends(rows: Sequence[ReplicaResult], blow: Blow, victim: int | None) -> list[str]:
    may_fail = {victim} if blow is Blow.lost else set()
    problems = [
        f"rank {row.rank} {row.status}: {row.error}"
        for row in rows
        if row.status != "succeeded" and row.rank not in may_fail
    ]
    if blow is Blow.lost and [row.rank for row in rows if row.preempted] != [victim]:
        problems.append(f"the run does not say that it lost rank {victim}")
    return problems


def _not_ended_by_lease(rows: Sequence[ReplicaResult]) -> list[str]:
    return [
        f"rank {row.rank} ended otherwise than by its driver's lease: {row.error}"
        for row in rows
        if "LeaseExpiredError" not in str(row.error)
    ]


async def _participation(store: Store) -> dict[int, set[tuple[object, ...]]]:
    """Return who was missing in each round, in the words of every replica's events."""
    events, _ = await read_events(store)
    seen: dict[int, set[tuple[object, ...]]] = {}
    for event in events:
        if event.kind == "round":
            number, absent = event.data["round"], event.data["absent"]
            assert isinstance(number, int)
            assert isinstance(absent, list)
            seen.setdefault(number, set()).add(tuple(absent))
    return seen
