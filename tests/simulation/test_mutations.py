"""A simulation that notices nothing proves nothing: broken on purpose, each promise of the protocol is missed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("multiprocessing.forkserver", reason="no fork on this system")

_REPOSITORY = Path(__file__).parents[2]


def test_every_broken_promise_is_noticed_by_a_known_seed() -> None:
    """`--mutations` without `--known` looks for the first seed that does."""
    command = [sys.executable, "-m", "aiodiloco.testing.simulation", "--mutations", "--known", "--jobs", "1"]
    env = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=_REPOSITORY, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) >= 7
