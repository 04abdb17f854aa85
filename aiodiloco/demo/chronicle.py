"""What an event log says of a run's outages: who was in which round, who died where, and when it was back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from aiodiloco.events import Event

__all__ = ["Chronicle", "Outage", "RoundSeen", "rank_of"]


@dataclasses.dataclass(frozen=True)
class RoundSeen:
    """One round, as whoever took its mean logged it.

    Attributes:
        step: Inner steps of each replica at its end.
        absent: The ranks that were not in it.
    """

    step: int
    absent: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Outage:
    """One process of a rank that failed, and what became of the rank. Rounds are counted from 1.

    Attributes:
        rank: Whose.
        incarnation: Which of its processes ended; the next one is to come back.
        error: How it ended.
        step: The latest inner step it is known to have taken; what it logged in its last second is lost.
        in_round: The round that was going on, as far as known; for sure once the next process is back.
        is_respawned: Whether the rank was started again.
        restored_from: Rounds in the checkpoint that the next process began from; None if there was none.
        back_in: The first round the next process was in; None if it has not been in one.
        missed: The rounds before that one that were made without the rank.
    """

    rank: int
    incarnation: int
    error: str
    step: int
    in_round: int
    is_respawned: bool = False
    restored_from: int | None = None
    back_in: int | None = None
    missed: tuple[int, ...] = ()


class Chronicle:
    """Takes the events of one run, in order for each writer, and keeps what they say of outages.

    Attributes:
        rounds: By number, from 1.
        outages: In the order of their beginning.
    """

    def __init__(self) -> None:
        self.rounds: dict[int, RoundSeen] = {}
        self.outages: list[Outage] = []
        self._steps: dict[str, int] = {}  # by writer: the latest logged

    @property
    def participation(self) -> list[RoundSeen]:
        """All rounds, in order."""
        return [self.rounds[number] for number in sorted(self.rounds)]

    def take(self, event: Event) -> Outage | None:
        """Return the outage that an event began, or brought further, as it is now; None for other events."""
        if event.kind == "step":
            self._steps[event.writer] = _int(event, "step")
        elif event.kind == "ended" and event.data["status"] == "failed":
            return self._begin(event)
        elif event.kind == "respawned":
            return self._advance(f"{event.data['rank']}-{event.data['incarnation']}", is_respawned=True)
        elif event.kind == "restored":
            self._advance(event.writer, restored_from=_int(event, "round"))
        elif event.kind == "round":
            return self._note_round(event)
        return None

    def _begin(self, event: Event) -> Outage:
        rank, incarnation = _int(event, "rank"), _int(event, "incarnation")
        outage = Outage(
            rank=rank,
            incarnation=incarnation,
            error=str(event.data["error"]),
            step=self._steps.get(f"{rank}-{incarnation}", 0),
            in_round=max(self.rounds, default=0) + 1,
        )
        self.outages.append(outage)
        return outage

    def _note_round(self, event: Event) -> Outage | None:
        number = _int(event, "round") + 1
        absent = tuple(cast("list[int]", event.data["absent"]))
        self.rounds[number] = RoundSeen(_int(event, "step"), absent)
        if not event.data["included"] or (outage := self._before(event.writer)) is None or outage.back_in is not None:
            return None
        first = self._first_missed(number, outage.rank)
        step = max(outage.step, self.rounds[first - 1].step if first - 1 in self.rounds else 0)
        return self._advance(
            event.writer, step=step, in_round=first, back_in=number, missed=tuple(range(first, number))
        )

    def _first_missed(self, number: int, rank: int) -> int:
        """Return the first of the rounds before this one that were made without the rank: who caught up logged each."""
        while number - 1 in self.rounds and rank in self.rounds[number - 1].absent:
            number -= 1
        return number

    def _advance(self, writer: str, **changes: object) -> Outage | None:
        outage = self._before(writer)
        if outage is None:
            return None
        changed = dataclasses.replace(outage, **changes)  # type: ignore[arg-type]  # what callers name is of its type
        self.outages[self.outages.index(outage)] = changed
        return changed

    def _before(self, writer: str) -> Outage | None:
        """Return the outage that this process came back from."""
        return next((one for one in self.outages if writer == f"{one.rank}-{one.incarnation + 1}"), None)


def rank_of(event: Event) -> int | None:
    """Return the rank that an event is about: its writer's, or the one that a driver names."""
    head = event.writer.partition("-")[0]
    if head.isdecimal():
        return int(head)
    rank = event.data.get("rank")
    return rank if isinstance(rank, int) else None


def _int(event: Event, name: str) -> int:
    return int(cast("int", event.data[name]))
