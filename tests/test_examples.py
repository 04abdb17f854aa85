"""The examples run as they stand."""

import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_train_async_ends_with_one_low_loss_for_all_replicas():
    command = [sys.executable, str(EXAMPLES / "train_async.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.search(r"\[(.*)\]", done.stdout)[1].split(", ")]
    assert len(losses) == 4
    assert len(set(losses)) == 1
    assert losses[0] < 0.5  # 3.6 untrained


def test_launch_run_starts_the_failing_replica_again_and_shows_its_result_when_called_again():
    name = f"run-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, str(EXAMPLES / "launch_run.py"), name]
    for _ in range(2):
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "['rank 0, process 0', 'rank 1, process 1', 'rank 2, process 0']" in done.stdout
    shutil.rmtree(Path(tempfile.gettempdir()) / "aiodiloco-runs" / "runs" / name)
