"""The examples run as they stand."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import httpx

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_train_async_ends_with_one_low_loss_for_all_replicas():
    command = [sys.executable, str(EXAMPLES / "train_async.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.search(r"\[(.*)\]", done.stdout)[1].split(", ")]
    assert len(losses) == 4
    assert len(set(losses)) == 1
    assert losses[0] < 0.5  # 3.6 untrained


def test_fastapi_service_trains_over_http_and_ends_with_its_process(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "fastapi_service.py"), str(port), str(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        headers = {"authorization": "Bearer secret"}
        transport = httpx.HTTPTransport(retries=10)  # half a second, a second, two … until it listens
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, transport=transport
        ) as client:
            body = {"entrypoint": "train", "n_replicas": 2, "timeout": 60, "args": {"steps": 100}}
            run_id = client.post("/runs", json=body).json()["run_id"]
            events = client.get(f"/runs/{run_id}/events?kind=round").text
            assert events.count('"kind":"round"') == 4
            assert '"outcome": "succeeded"' in events
    finally:
        process.terminate()
        process.wait(60)


def test_launch_run_starts_the_failing_replica_again_and_shows_its_result_when_called_again():
    name = f"run-{uuid.uuid4().hex[:12]}"
    command = [sys.executable, str(EXAMPLES / "launch_run.py"), name]
    for _ in range(2):
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "['rank 0, process 0', 'rank 1, process 1', 'rank 2, process 0']" in done.stdout
    shutil.rmtree(Path(tempfile.gettempdir()) / "aiodiloco-runs" / "runs" / name)
