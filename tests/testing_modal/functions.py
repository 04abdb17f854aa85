"""The app that the tests run: imported by the client, and by containers."""

# ruff: noqa: T201 - what containers print is what some tests read

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import modal

app = modal.App("loopback-tests")


class UserError(Exception):
    """An exception with an attribute."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


class OnlyThereError(Exception):
    """An exception that can be pickled, but not read back."""

    def __reduce__(self) -> Any:
        return (_only_in_a_container, ())


def _note(path: str, line: str) -> int:
    """Append a line to a file; return how many it had."""
    file = Path(path)
    before = file.read_text() if file.exists() else ""
    file.write_text(f"{before}{line}\n")
    return len(before.splitlines())


def _only_in_a_container() -> Exception:
    if not os.environ.get("MODAL_IS_REMOTE"):
        raise LookupError("not in a container")
    return ValueError("in a container")


@app.function()
def add(a: Any, b: Any = 0, *, rank: int = 0) -> Any:
    print(f"rank {rank} adds")
    print(f"rank {rank} warns", file=sys.stderr)
    return a + b


@app.function()
async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@app.function(timeout=60)
def sleep(path: str, seconds: float = 60) -> str:
    """Note every start and every interrupt in a file; sleep."""
    _note(path, "start")
    try:
        time.sleep(seconds)
    except BaseException as exc:
        _note(path, type(exc).__name__)
        raise
    return "slept"


@app.function()
async def sleep_async(path: str) -> None:
    _note(path, "start")
    await asyncio.sleep(60)


@app.function()
def first_waits_then_returns(path: str) -> str:
    """Wait in the first incarnation; return in the next."""
    if _note(path, "start"):
        return "second incarnation"
    time.sleep(60)
    return "first incarnation"


@app.function()
async def first_waits_then_returns_async(path: str) -> str:
    if _note(path, "start"):
        return "second incarnation"
    await asyncio.sleep(60)
    return "first incarnation"


@app.function(timeout=1)
def hangs_at_first(path: str) -> None:
    _note(path, "start")
    time.sleep(60)


@app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0))
def fails_twice(path: str) -> str:
    if _note(path, "try") < 2:
        raise UserError("again", 1)
    return "third time"


@app.function()
def fail(kind: str) -> None:
    match kind:
        case "user":
            raise UserError("broken", 42)
        case "timeout":
            raise TimeoutError("the user's own")
        case "exit":
            sys.exit(3)
        case "unreadable":
            raise OnlyThereError
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)


@app.function()
def pids() -> tuple[int, int]:
    return os.getpid(), os.getppid()


@app.function()
@modal.concurrent(max_inputs=10)
def span() -> tuple[float, float, int]:
    started = time.monotonic()
    time.sleep(0.05)
    return started, time.monotonic(), os.getpid()


@app.function()
def ignores_cancellation(path: str) -> str:
    _note(path, "start")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            time.sleep(60)
        except BaseException:
            continue
    return "ignored"


@app.function(secrets=[modal.Secret.from_dict({"LOOPBACK_SECRET": "hidden"})])
def environment(name: str) -> str | None:
    return os.environ.get(name)


@app.function()
def prints(count: int) -> None:
    for number in range(count):
        print(f"line {number}")


@app.function()
def prints_no_end(text: str) -> None:
    print(text, end="")


@app.function()
def says_and_waits(path: str) -> None:
    """Print a line, wait for the file to appear, print another."""
    print("before")
    while not Path(path).exists():
        time.sleep(0.01)
    print("after")


@app.function()
def spawns_child(path: str) -> None:
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    _note(path, str(child.pid))
    time.sleep(60)
