"""What must hold of every run that was launched, whatever happened to its drivers and replicas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aiodiloco.executors.policy import has_succeeded
from aiodiloco.lease import LeaseTerms
from aiodiloco.records import ReplicaStatus
from aiodiloco.run.journal import read_journal
from aiodiloco.run.record import RunOutcome, read_record, read_result
from aiodiloco.testing.simulation.invariants import check_training

if TYPE_CHECKING:
    from aiodiloco.run.record import RunResult
    from aiodiloco.testing.simulation.driven import Driven
    from aiodiloco.testing.simulation.process import Process
    from aiodiloco.testing.simulation.world import World

__all__ = ["check_driven"]

_JOINING_S = 330.0  # a replica that never gets a place gives up
_MARGIN_S = 1.0


async def check_driven(world: World, driven: Driven) -> None:
    """Raise AssertionError, saying which broke, unless the run was sound.

    - It ended, and nothing of it lives.
    - It says how it ended, and why; who succeeded is who finished; a replica whose row says that it ended has ended.
    - Each process of a rank was started at most once, and each that counts is in the journal.
    - A generation of the lease is written by one process; nobody starts or ends a replica while another drives.
    - Replicas are gone within one time to live and a beat after the last beat of any driver.
    - What `check_training` says.
    """
    assert driven.has_ended, f"did not end: {[p.name for p in world.processes if p.lives]}; errors {world.errors}"
    await check_training(world)
    await _check_result(world, driven)
    _check_starts(driven)
    _check_generations(world, driven)
    _check_orphans(world, driven)


async def _check_result(world: World, driven: Driven) -> None:
    record, result = await read_record(world.store), await read_result(world.store)
    plan = world.schedule.driver
    assert plan is not None
    if result is None:
        is_left = record is None or plan.comes_back is None
        assert is_left or all(_was_killed(driver) for driver in driven.drivers[-2:]), (
            f"the run has no result, and its drivers ended by themselves; errors {world.errors}"
        )
        return
    driven.outcome = result.outcome.value
    assert result.reason, "the run does not say why it ended"
    assert [row.rank for row in result.rows] == list(range(world.schedule.world_size)), f"rows: {result.rows}"
    assert all(row.error for row in result.rows if row.status is not ReplicaStatus.succeeded), f"rows: {result.rows}"
    succeeded = {row.rank for row in result.rows if row.status is ReplicaStatus.succeeded}
    assert succeeded <= set(world.notes.finished), f"{succeeded} succeeded, {set(world.notes.finished)} finished"
    has_reached = has_succeeded(plan.policy, result.rows)
    assert has_reached == (result.outcome is RunOutcome.succeeded), f"{result.outcome} by {plan.policy}: {result.rows}"
    await _check_rows(world, driven, result)


async def _check_rows(world: World, driven: Driven, result: RunResult) -> None:
    """A row that says how a replica ended says the truth."""
    journal = await read_journal(world.store, world.schedule.world_size)
    assert {str(handle.call_id) for handle in journal.handles.values()} <= driven.plane.calls.keys()
    for attempt in result.attempts:
        call = driven.plane.calls.get(str(attempt.row.call_id))
        if call is None or attempt.row.status is ReplicaStatus.running:
            continue
        is_lost = (attempt.row.error or "").startswith("lost sight of it")
        assert is_lost or (call.row is not None and call.row.status is attempt.row.status), (
            f"the result says of {call.call_id}: {attempt.row}; the control plane: {call.row}"
        )


def _check_starts(driven: Driven) -> None:
    twice = {slot: number for slot, number in driven.plane.spawned.items() if number > 1}
    assert not twice, f"started more than once: {twice}"


def _check_generations(world: World, driven: Driven) -> None:
    writers: dict[str, set[str]] = {}
    created: dict[str, tuple[float, str]] = {}
    for write in world.network.writes:
        writers.setdefault(write.key, set()).add(write.process)
        created.setdefault(write.key, (write.at_s, write.process))
    assert all(len(names) == 1 for names in writers.values()), f"written by several drivers: {writers}"
    history = [created[key] for key in sorted(created)]
    drivers = {driver.name: driver for driver in driven.drivers}
    for act in driven.plane.acts:
        own = max((number for number, (_, name) in enumerate(history) if name == act.process), default=None)
        assert own is not None, f"{act} by one who never drove"
        successor_s = history[own + 1][0] if own + 1 < len(history) else math.inf
        if act.what == "spawn" and not _was_held_up(drivers[act.process], act.at_s, world):
            assert act.at_s <= successor_s + _latency_s(world), f"{act}, and another drove since {successor_s:g} s"


def _was_held_up(process: Process, at_s: float, world: World) -> bool:
    """Whether it may have asked before another took over: it was stopped, or what it sent was."""
    plan = world.schedule.driver
    assert plan is not None
    since_s = at_s - 2 * _latency_s(world) - _MARGIN_S
    return any(end_s >= since_s for _, end_s in process.pauses + process.holds)


def _latency_s(world: World) -> float:
    plan = world.schedule.driver
    assert plan is not None
    return 1.5 * (plan.plane.latency_s + world.schedule.faults.latency_s)


def _check_orphans(world: World, driven: Driven) -> None:
    plan = world.schedule.driver
    assert plan is not None
    if plan.lease_s is None:
        return
    terms = LeaseTerms.of(plan.lease_s)
    beats = sorted(write.at_s for write in world.network.writes)
    for call in driven.plane.calls.values():
        for process in call.processes:
            assert process.end is not None
            joined_s = driven.plane.joined.get(process.name)
            since_s = process.began_s + _JOINING_S if joined_s is None else joined_s
            last_s = max([since_s, *(at_s for at_s in beats if at_s <= process.end.at_s)])
            allowed_s = terms.ttl_s + terms.beat_s + _excused_s(process, world, terms)
            assert process.end.at_s - last_s <= allowed_s, (
                f"{process.name} lived until {process.end.at_s:g} s, {process.end.at_s - last_s:g} s after the last "
                f"beat of a driver; its lease allows {allowed_s:g} s"
            )


def _excused_s(process: Process, world: World, terms: LeaseTerms) -> float:
    """How much longer a replica may live: it stood still, could not look, or saw the last beat late."""
    faults = world.schedule.faults
    can_fail = faults.unavailable + faults.truncated + faults.stale_list > 0
    stood_still_s = sum(end_s - begin_s for begin_s, end_s in process.pauses + process.holds)
    return stood_still_s + 4 * faults.latency_s + _MARGIN_S + (terms.ttl_s / 2 if can_fail else 0.0)


def _was_killed(process: Process) -> bool:
    return process.end is not None and process.end.how == "killed"
