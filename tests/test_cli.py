"""The command line: what it prints where, how it exits, and what it leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from typer.testing import CliRunner

from aiodiloco.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND = (sys.executable, "-m", "aiodiloco")

# So early, one long outer step is a gain for certain, and the momentum of fourteen overshoots for certain.
WINS = ("--replicas", "2", "--steps", "8", "--sync-every", "8")
LOSES = ("--replicas", "1", "--steps", "14", "--sync-every", "1")


def _run(*args: str, cwd: Path, tmp: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TMPDIR": str(tmp or cwd)}
    return subprocess.run(
        [*COMMAND, *args], cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=90
    )


def _refuse(*args: str) -> str:
    """Return the message of bad usage, as one line without the box around it."""
    result = CliRunner().invoke(app, ["demo", *args])
    assert result.exit_code == 2, result.output
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.output)


def test_version_is_the_packages(tmp_path):
    done = _run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"aiodiloco {version('aiodiloco')}\n")


def test_help_names_every_option_of_the_demo():
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    options = ("--replicas", "--steps", "--sync-every", "--store", "--wire", "--seed", "--no-kill", "--away", "--out")
    for option in (*options, "--json"):
        assert option in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--replicas", "0"], "replicas must be 1 to 64, not 0"),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--steps", "10", "--sync-every", "20"], "sync_every=20 is more than steps=10"),
        (["--wire", "fp8"], "wire must be one of fp32, fp16, bf16, int8, e3m0, not 'fp8'"),
        (
            ["--store", "memory://here"],
            "store 'memory://here' lives in one process, and every replica is a process of its own",
        ),
        (["--store", "ftp://host/x"], "this version knows no ftp:// stores; use file:///absolute/path"),
        (["--store", ""], "store '' is not valid: use file:///absolute/path"),
        (["--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_a_bad_value_is_refused_with_2_naming_it_and_the_remedy(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in _refuse(*args)


def test_a_store_that_cannot_be_made_is_refused_with_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a directory")
    message = _refuse("--store", str(tmp_path / "file"))
    assert "--store" in message
    assert "file" in message


def test_an_output_directory_that_cannot_be_made_is_refused_with_2(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    assert "name another directory" in _refuse("--out", str(tmp_path / "file"))


@contextlib.contextmanager
def _no_process_left(driver: int) -> Iterator[None]:
    """Check that on leaving, all processes that `driver` has or had started on entering are gone within seconds."""
    started = psutil.Process(driver).children(recursive=True)
    assert started, "the driver has not launched anything yet"
    yield
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive


def test_a_demo_that_wins_prints_lines_a_table_and_where_its_files_are(tmp_path):
    """Without a terminal, with the default store, from start to end."""
    (tmp_path / "tmp").mkdir()
    done = _run("demo", *WINS, cwd=tmp_path, tmp=tmp_path / "tmp")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert 1 <= len(lines) <= 10
    assert lines[-1].startswith("step 8/8")
    for part in ("held-out loss", "data parallel*", "DiLoCo beat the lone replica by", "same weights"):
        assert part in done.stdout
    assert f"See {Path('demo-out/demo.png')} and {Path('demo-out/result.json')}." in done.stdout
    result = json.loads((tmp_path / "demo-out" / "result.json").read_text())
    assert result["diloco_loss"] < result["alone_loss"]
    assert result["rounds"] == 1
    assert (tmp_path / "demo-out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "tmp").glob("aiodiloco*")), "the temporary store is gone"


def test_a_replica_that_is_killed_halfway_comes_back_and_ends_with_the_others_weights(tmp_path):
    done = _run("demo", "--replicas", "2", "--steps", "80", "--sync-every", "10", "--away", "0.5", cwd=tmp_path)
    assert "different weights" not in done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("Replica 1")]
    assert [re.split(" in round |, ", line)[0] for line in told] == [
        "Replica 1 will be killed halfway",
        "Replica 1 was killed on purpose (SIGKILL)",
        "Replica 1 is started again",
        "Replica 1 is back",
        "Replica 1 was killed on purpose",
    ]
    result = json.loads((tmp_path / "demo-out" / "result.json").read_text())
    assert result["replicas_agree"] is True
    [outage] = result["outages"]
    assert (outage["rank"], outage["incarnation"], outage["is_respawned"]) == (1, 0, True)
    assert outage["error"].startswith("killed by SIGKILL")
    assert 5 <= outage["in_round"] <= outage["back_in"] <= 8
    absent = [number for number, seen in enumerate(result["participation"], start=1) if seen["absent"] == [1]]
    assert absent == outage["missed"]


def test_a_demo_that_loses_exits_with_1_and_its_json_is_alone_on_stdout(tmp_path):
    """An honest loss, in a store of the user's."""
    store = tmp_path / "store"
    done = _run("demo", *LOSES, "--json", "--store", str(store), "--wire", "int8", "--out", "there", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^aiodiloco: DiLoCo did not beat the lone replica: held-out loss \d", done.stderr, re.MULTILINE)
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "there" / "result.json").read_text())
    assert result["diloco_wins"] is False
    asked = {"replicas": 1, "steps": 14, "sync_every": 1, "wire": "int8", "seed": 0}
    assert result["settings"] == {**asked, "kill": True, "away": None}
    assert result["outages"] == [], "nobody would be left"
    parameters = result["num_parameters"]
    assert 14 * parameters < result["bytes_sent"] < 1.1 * 14 * parameters, "a byte for each parameter in each round"
    assert any(store.glob("runs/*/events/0-0/*.jsonl"))


def test_a_reader_that_leaves_early_ends_the_demo_in_good_order(tmp_path):
    """As in `aiodiloco demo | head -1`."""
    driver = subprocess.Popen(
        [*COMMAND, "demo", "--replicas", "1", "--steps", "100"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with driver, contextlib.closing(driver.stdout):
        assert driver.stdout.readline().startswith(b"DiLoCo with 1 replica, meeting every 20 steps")
        driver.stdout.close()
        assert driver.wait(timeout=60) == 1
        assert b"Traceback" not in driver.stderr.read()


class Terminal:
    """A command on a terminal of its own, as a shell would run it."""

    def __init__(self, command: Sequence[str], cwd: Path) -> None:
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))  # rows, columns
        # Only a process that has this terminal as its controlling one gets a SIGINT from its Ctrl-C.
        take_over = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", take_over, *command],
            cwd=cwd,
            env={**os.environ, "TERM": "xterm-256color", "TMPDIR": str(cwd)},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.screen = ""

    def press(self, keys: bytes) -> None:
        """Type `keys`."""
        os.write(self._controller, keys)

    def read_until(self, pattern: str, *, within_s: float) -> None:
        """Read until what was printed so far holds `pattern`."""
        deadline = time.monotonic() + within_s
        while not re.search(pattern, self.screen):
            readable, _, _ = select.select([self._controller], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no {pattern!r} within {within_s:g} s in {self.screen!r}"
            self.screen += os.read(self._controller, 65536).decode(errors="replace")

    def close(self) -> None:
        """Kill what still runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._controller)


def test_on_a_terminal_there_are_bars_and_ctrl_c_ends_everything_with_130(tmp_path):
    command = [*COMMAND, "demo", "--replicas", "2", "--steps", "100000", "--sync-every", "10"]
    terminal = Terminal(command, tmp_path)
    try:
        terminal.read_until(r"replica 1 .*━.* \d+/100000 loss \d\.\d+ .*k tokens/s  round [1-9]", within_s=60)
        assert re.search(r"alone .*━", terminal.screen)
        with _no_process_left(terminal.process.pid):
            terminal.press(b"\x03")
            terminal.read_until("aiodiloco: interrupted; the replicas were ended", within_s=15)
            assert terminal.process.wait(timeout=15) == 130
        assert "Traceback" not in terminal.screen
        assert "\x1b[?25h" in terminal.screen, "the cursor is back"
        assert not list(tmp_path.glob("aiodiloco*")), "the temporary store is gone"
    finally:
        terminal.close()


def test_ctrl_c_while_it_still_imports_is_no_traceback(tmp_path):
    code = (
        "import os, signal, sys\n"
        "class Press:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
        "from aiodiloco.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "aiodiloco: interrupted\n")


@pytest.mark.parametrize(
    ("package", "extra"), [("typer", "cli"), ("rich", "cli"), ("torch", "demo"), ("matplotlib", "demo")]
)
def test_a_missing_package_is_named_in_one_line_with_the_command_that_installs_it(tmp_path, package, extra):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "sys.argv = ['aiodiloco', 'demo']\n"
        "from aiodiloco.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"aiodiloco: this needs {package}, which is not installed: pip install 'aiodiloco[{extra}]'\n"
    )
