"""What an event log says of outages, and how that is told."""

from __future__ import annotations

import pytest

from aiodiloco import Event
from aiodiloco.demo.chronicle import Chronicle, RoundSeen, rank_of
from aiodiloco.demo.settings import DemoSettings
from aiodiloco.demo.story import summarise, tell

SETTINGS = DemoSettings(replicas=3, steps=100, sync_every=10)


class Log:
    """A chronicle, and what it made of each event."""

    def __init__(self) -> None:
        self.chronicle = Chronicle()
        self.told: list[str] = []

    def add(self, kind: str, writer: str, **data: object) -> None:
        if (outage := self.chronicle.take(Event(kind, writer, 0, 0.0, data))) is not None:
            self.told.append(tell(outage, SETTINGS))

    def round(self, writer: str, number: int, *absent: int, included: bool = True) -> None:
        self.add("round", writer, round=number - 1, step=10 * number, absent=list(absent), included=included)

    def end(
        self, rank: int, incarnation: int, *, status: str = "failed", error: str | None = "killed by SIGKILL"
    ) -> None:
        self.add("ended", "driver-1", rank=rank, incarnation=incarnation, status=status, error=error, preempted=True)

    def respawn(self, rank: int, incarnation: int) -> None:
        self.add("respawned", "driver-1", rank=rank, incarnation=incarnation)


@pytest.fixture
def log() -> Log:
    log = Log()
    for number in (1, 2):
        for rank in range(3):
            log.round(f"{rank}-0", number)
    log.add("step", "2-0", step=27, loss=1.0)
    return log


def test_an_outage_is_followed_from_its_end_to_the_comeback(log):
    log.end(2, 0)
    log.round("0-0", 3, 2)
    log.respawn(2, 1)
    log.add("restored", "2-1", round=2, step=20)
    log.round("2-1", 3, 2, included=False)
    log.round("2-1", 4, 2, included=False)
    log.round("2-1", 5)
    log.round("2-1", 6)
    [outage] = log.chronicle.outages
    assert (outage.rank, outage.incarnation, outage.step, outage.in_round) == (2, 0, 27, 3)
    assert (outage.restored_from, outage.back_in, outage.missed) == (2, 5, (3, 4))
    assert log.told == [
        "Replica 2 was killed on purpose (SIGKILL), halfway; the others go on.",
        "Replica 2 is started again, as its incarnation 1.",
        "Replica 2 is back in round 5, from the checkpoint of round 2 and the rounds since; it missed rounds 3 to 4.",
    ]
    assert summarise(outage, SETTINGS) == (
        "Replica 2 was killed on purpose in round 3; the others made rounds 3 to 4 without it. "
        "It was back in round 5, from the checkpoint of round 2 and the rounds since."
    )
    assert log.chronicle.participation[2:4] == [RoundSeen(30, (2,)), RoundSeen(40, (2,))]


def test_who_is_back_at_once_without_a_checkpoint_missed_nothing(log):
    log.end(2, 0)
    log.respawn(2, 1)
    for number in (1, 2):
        log.round("2-1", number, included=False)
    log.round("2-1", 3)
    assert log.told[-1] == "Replica 2 is back in round 3, from the means of all rounds before; it missed no round."
    assert "it missed no round" in summarise(log.chronicle.outages[0], SETTINGS)


def test_rounds_that_were_logged_after_the_end_was_known_are_no_longer_those_it_ended_in(log):
    """Each process writes its log once a second: a driver's word of an end may come before the others' last rounds."""
    log.end(2, 0)
    log.respawn(2, 1)
    assert log.chronicle.outages[0].in_round == 3
    for number in (3, 4):
        log.round("0-0", number)
    log.round("0-0", 5, 2)
    log.round("2-1", 6)
    [outage] = log.chronicle.outages
    assert (outage.in_round, outage.step, outage.missed, outage.back_in) == (5, 40, (5,), 6)


def test_who_is_lost_twice_has_two_outages_and_only_the_first_was_on_purpose(log):
    for incarnation in (0, 1):
        log.end(2, incarnation)
        log.respawn(2, incarnation + 1)
    log.round("2-2", 3)
    first, second = log.chronicle.outages
    assert (first.back_in, second.back_in) == (None, 3)
    assert "came back too late to be in a round again" in summarise(first, SETTINGS)
    assert log.told[2] == "Replica 2 was lost: killed by SIGKILL."
    assert summarise(second, SETTINGS).startswith("Replica 2 was lost (killed by SIGKILL) in round 3; it missed no")


def test_another_rank_that_is_killed_was_not_killed_on_purpose(log):
    log.end(1, 0)
    assert log.told == ["Replica 1 was lost: killed by SIGKILL."]
    assert not log.chronicle.outages[0].is_respawned


def test_ends_that_are_no_failures_are_no_outages(log):
    log.end(1, 0, status="succeeded", error=None)
    log.end(0, 0, status="cancelled", error="cancelled")
    assert log.chronicle.outages == []


def test_an_event_is_about_its_writers_rank_or_the_one_that_a_driver_names():
    assert rank_of(Event("step", "12-3", 0, 0.0, {"rank": 5})) == 12
    assert rank_of(Event("ended", "driver-1", 0, 0.0, {"rank": 5})) == 5
    assert rank_of(Event("stopping", "driver-1", 0, 0.0, {})) is None
