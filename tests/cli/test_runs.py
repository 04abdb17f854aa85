"""Runs from the shell: launched, listed, followed, ended; on this machine and on Modal's own runtime."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from typer.testing import CliRunner

from aiodiloco.cli.app import app
from aiodiloco.testing.modal import LoopbackModal

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

_COMMAND = (sys.executable, "-m", "aiodiloco")

_JOB = """
import time

from aiodiloco import join_sync

def train(*, rank, world_size, rendezvous_uri, ticks=3, fails=None):
    with join_sync(rendezvous_uri, rank=rank, world_size=world_size) as replica:
        for tick in range(ticks):
            print(f"tick {tick}", flush=True)
            replica.report(tick, loss=1.0)
            if rank == fails:
                raise RuntimeError("no luck")
            if ticks > 3:
                time.sleep(0.1)
    return {"rank": rank}
"""

_MODAL_JOB = """
import modal

app = modal.App("cli-story")

@app.function(serialized=True, timeout=300)
def train(*, rank, rendezvous_uri, world_size):
    import time
    from aiodiloco import join_sync
    with join_sync(rendezvous_uri, rank=rank, world_size=world_size):
        print(f"rank {rank} is there", flush=True)
        time.sleep(200)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a job in it, where commands run: in this process, or in one of their own."""
    (tmp_path / "job.py").write_text(_JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "job", raising=False)
    for name, value in _state(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def _state(here: Path) -> dict[str, str]:
    return {"AIODILOCO_STORE": str(here / "store"), "XDG_STATE_HOME": str(here / "state")}


def _run(*args: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, args)
    assert done.exit_code == code, f"{args}: {done.output}\n{done.exception!r}"
    return done


def _run_alone(here: Path, *args: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [*_COMMAND, *args], cwd=here, env={**os.environ, **env}, check=False, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, f"{args}: {done.stdout}\n{done.stderr}"
    return done.stdout


def _start(here: Path, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_COMMAND, *args], cwd=here, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def _read_until(process: subprocess.Popen[str], what: str, *, times: int = 1) -> str:
    """Read stdout until `what` came so often; the test's own timeout bounds it."""
    text = ""
    assert process.stdout is not None
    while text.count(what) < times:
        line = process.stdout.readline()
        assert line, f"ended before {what!r}: {text}{process.stderr.read()}"
        text += line
    return text


def test_a_run_that_succeeds_is_followed_and_exits_with_0(here):
    done = _run("launch", "job:train", "-n", "2", "--timeout", "60", "--run-id", "good")
    assert "rank 0 joined" in done.stdout
    assert "{'rank': 1}" in done.stdout
    listed = json.loads(_run("ps", "--json").stdout)
    assert [(run["run_id"], run["state"], run["n_replicas"]) for run in listed] == [("good", "succeeded", 2)]
    assert "good" in _run("ps").stdout
    assert json.loads(_run("status", "good", "--json").stdout)["result"]["outcome"] == "succeeded"
    assert _run("logs", "good", "--rank", "1", "-n", "2").stdout == "tick 1\ntick 2\n"
    assert json.loads(_run("wait", "good", "--json").stdout)["run_id"] == "good"
    assert _run("launch", "job:train", "-n", "2", "--timeout", "60", "--run-id", "good").exit_code == 0


def test_a_run_that_fails_exits_with_1_and_shows_why(here):
    done = _run("launch", "job:train", "-n", "2", "--timeout", "60", "--arg", "fails=1", code=1)
    assert 'raise RuntimeError("no luck")' in done.stdout


def test_a_run_that_takes_too_long_exits_with_124(here):
    done = _run("launch", "job:train", "-n", "1", "--timeout", "4", "--arg", "ticks=10000", "--json", code=124)
    assert json.loads(done.stdout)["outcome"] == "cancelled"


def test_a_dry_run_checks_everything_and_starts_nothing(here):
    (here / "run.toml").write_text('entrypoint = "job:train"\nreplicas = 3\nstore = "store"\ntimeout = 60\n')
    done = _run("launch", "run.toml", "--dry-run", "--policy", "quorum:2", "--arg", "ticks=1")
    spec = json.loads(done.stdout)
    assert (spec["replicas"], spec["args"], spec["policy"]["kind"]) == (3, {"ticks": 1}, "Quorum")
    assert not (here / "store").exists()
    assert "has no 'nope'" in _run("launch", "job:nope", "--timeout", "1", "--dry-run", code=1).stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("launch", "job:train"), 2, "no timeout"),
        (("launch", "job:train", "--timeout", "60", "--policy", "maybe"), 2, "policy must be"),
        (("launch", "job:train", "--timeout", "60", "--backend", "slurm"), 2, "local or modal"),
        (("launch", "job:train", "--timeout", "60", "--detach"), 2, "--lease none"),
        (("launch", "--timeout", "60"), 2, "nothing to run"),
        (("launch", "job", "--timeout", "60"), 1, 'not of the form "module:function"'),
        (("wait", "nobody"), 1, "no run 'nobody'"),
        (("status", "No Name"), 2, "is not valid"),
        (("reap", "--backend", "slurm"), 2, "local or modal"),
    ],
)
def test_bad_usage_is_named(here, args, code, message):
    assert message in " ".join(_run(*args, code=code).output.replace("│", "").split())


def test_ctrl_c_ends_the_run_and_exits_with_130(here):
    with _start(here, "launch", "job:train", "-n", "2", "--timeout", "90", "--arg", "ticks=10000") as driver:
        _read_until(driver, "joined", times=2)
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=60)
        assert driver.returncode == 130
        assert "interrupted; the replicas were ended" in err
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    [run] = json.loads(_run("ps", "--json").stdout)
    assert run["state"] == "cancelled"


def test_a_detached_run_goes_on_and_is_waited_for_and_cancelled_from_elsewhere(here):
    done = _run(
        "launch",
        "job:train",
        "-n",
        "1",
        "--timeout",
        "300",
        "--lease",
        "none",
        "--detach",
        "--arg",
        "ticks=99999",
    )
    run_id = done.stdout.strip()
    [run] = json.loads(_run("ps", "--json").stdout)
    assert (run["run_id"], run["state"]) == (run_id, "on its own")
    assert "has not ended after 1 s" in _run("wait", run_id, "--timeout", "1", code=124).stderr
    assert "cancelled" in _run("cancel", run_id).stdout
    _run("attach", run_id, code=1)


def test_attaching_drives_a_run_that_nobody_drives(here):
    """Its replicas end by themselves; who attached says so, and writes the result."""
    run_id = _run(
        "launch", "job:train", "-n", "1", "--timeout", "300", "--lease", "none", "--detach", "--arg", "ticks=20"
    ).output.strip()
    assert "succeeded" in _run("attach", run_id).output
    assert json.loads(_run("ps", "--json").output)[0]["state"] == "succeeded"


def test_sigterm_ends_the_run_also_where_sigint_is_ignored(here):
    """As in a background job of a script that is not interactive."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        driver = _start(here, "launch", "job:train", "-n", "1", "--timeout", "90", "--arg", "ticks=10000")
    finally:
        signal.signal(signal.SIGINT, before)
    with driver:
        _read_until(driver, "joined")
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.terminate()
        driver.communicate(timeout=60)
        assert driver.returncode == 130
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_a_reader_that_leaves_does_not_end_the_run(here):
    """As in `aiodiloco launch … | head -1`."""
    with _start(
        here, "launch", "job:train", "-n", "1", "--timeout", "90", "--run-id", "on", "--arg", "ticks=30"
    ) as driver:
        driver.stdout.readline()
        driver.stdout.close()
        driver.wait(60)
        assert "Traceback" not in driver.stderr.read()
    assert json.loads(_run("ps", "--json").output)[0]["state"] == "succeeded"


def test_doctor_examines_a_store(here):
    findings = json.loads(_run("doctor", str(here / "store"), "--json").stdout)
    found = {finding["name"]: finding for finding in findings}
    assert all(finding["is_good"] for finding in findings)
    assert "MB/s down" in found["store bandwidth"]["found"]
    assert not [path for path in (here / "store").rglob("*") if path.is_file()]
    (here / "file").write_text("")
    bad = _run("doctor", str(here / "file"), code=1)
    assert "not fit: store" in bad.stderr


@pytest.mark.timeout(300)  # eight processes, each of which imports Modal
def test_the_whole_story_on_modal(here):
    """Launched by one process, which dies; listed, looked into, and reaped by others."""
    (here / "modal_job.py").write_text(_MODAL_JOB)
    with LoopbackModal() as loopback:
        env = {**loopback.env, "PYTHONPATH": os.pathsep.join(sys.path)}
        launch = ("launch", "modal_job:train", "-n", "2", "--backend", "modal", "--timeout", "200", "--lease", "6")
        with _start(here, *launch, "--run-id", "story", env=env) as driver:
            _read_until(driver, "joined", times=2)
            [run] = json.loads(_run_alone(here, "ps", "--alive", "--json", env=env))
            assert (run["run_id"], run["backend"], run["state"]) == ("story", "modal", "running")
            status = json.loads(_run_alone(here, "status", "story", "--json", env=env))
            assert [row["status"] for row in status["replicas"]] == ["running", "running"]
            assert "rank 1 is there" in _run_alone(here, "logs", "story", "--rank", "1", env=env)
            driver.kill()
        ended = json.loads(_run_alone(here, "reap", "--backend", "modal", "--json", env=env))
        assert [(result["run_id"], result["outcome"]) for result in ended] == [("story", "cancelled")]
        assert [call.state for call in loopback.calls() if call.state == "running"] == []
        [run] = json.loads(_run_alone(here, "ps", "--json", env=env))
        assert run["state"] == "cancelled"
        _run_alone(here, "doctor", "--modal", env=env)
