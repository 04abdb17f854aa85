"""`aiodiloco modal-emulator`: what it prints where, who can use it, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from typer.testing import CliRunner

from aiodiloco.cli.app import app
from aiodiloco.testing.modal import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COMMAND = [sys.executable, "-m", "aiodiloco", "modal-emulator"]
_BOUND_S = 60.0

_SCRIPT = """
import modal

app = modal.App("plain")


@app.function()
def add(x, y):
    return x + y, modal.is_local()


@app.function()
def sleep():
    import time
    time.sleep(600)


if __name__ == "__main__":
    with app.run(detach=True):
        print(add.remote(20, 22))
        sleep.spawn()
"""


@contextlib.contextmanager
def _emulator(*args: str, tmp: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run the command; yield it and the variables that it prints. Afterwards nothing of it may be left."""
    process = subprocess.Popen(
        [*_COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp)},
        text=True,
    )
    with process:
        try:
            printed = process.stdout.read()  # to its end: nothing that goes on running holds it
            lines = [re.fullmatch(r"export ([A-Z_]+)=(\S+)", line) for line in printed.splitlines()]
            yield process, {match[1]: shlex.split(match[2])[0] for match in lines}
        finally:
            process.kill()


def _run(command: list[str], env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_plain_modal_script_runs_on_what_it_prints_and_ctrl_c_leaves_nothing(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "plain.py").write_text(_SCRIPT)
    with _emulator(tmp=files) as (process, env):
        assert set(env) == {
            f"MODAL_{x}" for x in ("SERVER_URL", "TOKEN_ID", "TOKEN_SECRET", "CONFIG_PATH", "ENVIRONMENT")
        }
        out = _run([sys.executable, "plain.py"], env, tmp_path)
        assert out == "(42, False)\n", "it ran in a container"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2, "the process that forks containers, and a container at work"
        assert len(list(files.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(_BOUND_S) == 0
        url, kill = env["MODAL_SERVER_URL"], f"`kill {process.pid}`"
        assert process.stderr.read() == f"aiodiloco: Modal is emulated at {url}; end it with Ctrl-C or {kill}\n"
    assert not psutil.wait_procs(started, timeout=5)[1]
    assert list(files.iterdir()) == []


_SHELL = """
eval "$({command} 2> log &)"
pid=$(grep -o 'kill [0-9]*' log | cut -d ' ' -f 2)
trap "kill $pid" EXIT
{modal} app list || exit 3
kill $pid
until ! kill -0 $pid; do sleep 0.05; done 2> /dev/null
trap - EXIT
"""


def test_a_shell_can_evaluate_it_and_sigterm_ends_it(tmp_path):
    (tmp_path / "files").mkdir()
    modal = shlex.join([sys.executable, "-m", "modal"])
    script = _SHELL.format(command=shlex.join(_COMMAND), modal=modal)
    assert "Apps in environment" in _run(["bash", "-c", script], {"TMPDIR": str(tmp_path / "files")}, tmp_path)
    assert list((tmp_path / "files").iterdir()) == []


_LOOKUP = """
import time, modal
start = time.monotonic()
modal.App.lookup("late", create_if_missing=True)
print(time.monotonic() - start)
"""


def test_requests_take_the_latency_longer(tmp_path):
    with _emulator("--latency", "0.5", tmp=tmp_path) as (_, env):
        assert float(_run([sys.executable, "-c", _LOOKUP], env, tmp_path)) > 0.5


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_refused_with_2(taken):
    result = CliRunner().invoke(app, ["modal-emulator", "--port", str(taken)])
    assert result.exit_code == 2
    assert f"port {taken} is taken; leave --port out for a free one" in re.sub(r"[\s│╭╮╰╯─]+", " ", result.output)


def test_a_port_taken_in_the_last_moment_is_one_plain_error(taken):
    """What the command translates, should somebody take the port after it has looked."""
    with pytest.raises(OSError, match=str(taken)):
        main(port=taken)


@pytest.mark.parametrize(("option", "value"), [("--port", "65536"), ("--latency", "-1"), ("--max-containers", "0")])
def test_a_bad_value_is_refused_with_2(option, value):
    result = CliRunner().invoke(app, ["modal-emulator", option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


def test_a_module_that_cannot_be_preloaded_is_named_with_1(tmp_path):
    done = subprocess.run(
        [*_COMMAND, "--preload", "no_such"], capture_output=True, text=True, timeout=_BOUND_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "No module named 'no_such'" in done.stderr
    assert "aiodiloco: the process that forks containers" in done.stderr.splitlines()[-1]


def test_a_missing_modal_is_named_in_one_line_with_the_command_that_installs_it():
    code = (
        "import sys; sys.modules['modal'] = None; sys.argv = ['aiodiloco', 'modal-emulator']\n"
        "from aiodiloco.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "aiodiloco: this needs modal, which is not installed: pip install 'aiodiloco[modal]'\n"
