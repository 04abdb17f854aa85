"""Runs as a whole: launch one, come back to it from anywhere, end what others left."""

from aiodiloco.run.attaching import attach
from aiodiloco.run.launching import launch
from aiodiloco.run.listing import RunSummary, list_runs
from aiodiloco.run.reaping import reap
from aiodiloco.run.record import RunAttempt, RunOutcome, RunResult
from aiodiloco.run.run import Run, RunStatus

__all__ = [
    "Run",
    "RunAttempt",
    "RunOutcome",
    "RunResult",
    "RunStatus",
    "RunSummary",
    "attach",
    "launch",
    "list_runs",
    "reap",
]
