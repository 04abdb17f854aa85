"""Entrypoints for testing executors: each shows one behaviour, and lives where replicas can import it."""

from __future__ import annotations

import sys
import time

import anyio
import anyio.lowlevel

__all__ = [
    "add",
    "add_async",
    "exit_with",
    "fail",
    "fail_async",
    "fail_or_sleep",
    "print_lines",
    "print_then_sleep",
    "return_object",
    "sleep",
    "sleep_async",
    "sleep_by_rank",
]

_FOREVER_S = 600.0


def add(*, rank: int, to: float = 0, note: object = None) -> dict[str, object]:
    """Return the rank, the sum of rank and `to`, and `note` as it arrived."""
    return {"rank": rank, "sum": rank + to, "note": note}


async def add_async(*, rank: int, to: float = 0) -> dict[str, object]:
    """Return what `add` does, from a coroutine."""
    await anyio.lowlevel.checkpoint()
    return add(rank=rank, to=to)


def fail(*, rank: int) -> None:
    """Raise a ValueError that names the rank."""
    raise ValueError(f"rank {rank} will not")


async def fail_async(*, rank: int) -> None:
    """Raise what `fail` does, from a coroutine."""
    await anyio.lowlevel.checkpoint()
    fail(rank=rank)


def sleep(*, rank: int, seconds: float = _FOREVER_S) -> int:
    """Return the rank after `seconds`."""
    time.sleep(seconds)
    return rank


async def sleep_async(*, rank: int, seconds: float = _FOREVER_S) -> int:
    """Return the rank after `seconds`, from a coroutine."""
    await anyio.sleep(seconds)
    return rank


def sleep_by_rank(*, rank: int, seconds: list[float]) -> int:
    """Return the rank after `seconds[rank]`."""
    return sleep(rank=rank, seconds=seconds[rank])


def fail_or_sleep(*, rank: int, failing: int, after: float = 0.0, seconds: float = _FOREVER_S) -> int:
    """Sleep, except on rank `failing`, which raises RuntimeError with the Unix time as its message."""
    if rank == failing:
        time.sleep(after)
        raise RuntimeError(repr(time.time()))
    return sleep(rank=rank, seconds=seconds)


def exit_with(*, rank: int, code: int | str | None) -> None:
    """Call `sys.exit(code)`."""
    del rank
    sys.exit(code)


def print_lines(*, rank: int, n_lines: int, end: str = "\n") -> None:
    """Print `line 0 of rank …` and so on to stdout, then one line to stderr, whose line end is `end`."""
    for number in range(n_lines):
        print(f"line {number} of rank {rank}")  # noqa: T201 - what is tested
    sys.stderr.write(f"last words of rank {rank}{end}")


def print_then_sleep(*, rank: int, n_lines: int, seconds: float) -> None:
    """Print lines as `print_lines` does, with a pause of `seconds` after each."""
    for number in range(n_lines):
        print(f"line {number} of rank {rank}")  # noqa: T201 - what is tested
        time.sleep(seconds)


def return_object(*, rank: int, kind: str) -> object:
    """Return something that is not JSON: `"object"`, `"nan"`, `"bytes in a list"` or `"int key"`."""
    del rank
    return {"object": object(), "nan": float("nan"), "bytes in a list": [1, b"x"], "int key": {1: 2}}[kind]
