"""The examples run as they stand."""

import re
import subprocess
import sys
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
