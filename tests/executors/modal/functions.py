"""Functions of the user's own, for the tests of `ModalSpawnExecutor`."""

from __future__ import annotations

import os
import time

import modal

app = modal.App("users-own", include_source=False)


@app.function(timeout=600)
def rank_and(*, rank: int, number: int = 0, **more: int) -> dict[str, object]:
    return {"rank": rank, "number": number, "more": dict(more)}


@app.function(timeout=77)
def sleep(*, rank: int, seconds: float = 600.0) -> int:
    time.sleep(seconds)
    return rank


@app.function(timeout=600)
def sleep_by_rank(*, rank: int, seconds: list[float]) -> int:
    time.sleep(seconds[rank])
    return rank


@app.function(timeout=600)
def raise_timeout(*, rank: int, message: str | None = None) -> None:
    raise TimeoutError if message is None else TimeoutError(message)


@app.function(timeout=600)
def raise_of_the_control_plane(*, rank: int) -> None:
    raise modal.exception.ConnectionError(f"rank {rank} lost its own connection")


class RankError(Exception):
    """Cannot be unpickled: its constructor takes more than it hands on."""

    def __init__(self, rank: int, why: str) -> None:
        super().__init__(f"{rank}: {why}")


@app.function(timeout=600)
def raise_unpicklable(*, rank: int) -> None:
    raise RankError(rank, "no reason")


@app.function(timeout=600)
def exit_hard(*, rank: int) -> None:
    os._exit(3)


@app.function(timeout=600)
def never_end(*, rank: int) -> None:
    """Swallow every polite request."""
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


@app.function(timeout=600)
def print_every(*, rank: int, n_lines: int, seconds: float) -> None:
    for number in range(n_lines):
        print(f"line {number} of rank {rank}", flush=True)  # noqa: T201 - what is tested
        time.sleep(seconds)
