"""Running a case: one process per rank, each on a cable of its own or all on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from links.network import plug_in, rank_address, unplug

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from links.case import Case

__all__ = ["run_case"]

_BENCHMARKS = Path(__file__).parent.parent


def run_case(
    case: Case, environ: dict[str, str], store: str, between: Callable[[], None]
) -> list[list[dict[str, Any]]]:
    """Return every round's answers in rank order. `between` is called before each round."""
    rounds = []
    with _processes(case, environ) as ranks:
        for rank, process in enumerate(ranks):
            _hear(process)
            if case.shape:
                plug_in(rank, process.pid, case.shape)
        for rank, process in enumerate(ranks):
            _say(process, _job(case, rank, store))
        for _ in range(case.rounds):
            for process in ranks:
                _hear(process)
            between()
            for process in ranks:
                _say(process, "go")
            rounds.append([_hear(process) for process in ranks])
        for process in ranks:
            process.wait(60)
    return rounds


def _job(case: Case, rank: int, store: str) -> dict[str, Any]:
    return {
        "backend": case.backend,
        "rank": rank,
        "world_size": case.world_size,
        "mib": case.mib,
        "wire": case.wire,
        "rounds": case.rounds,
        "options": dict(case.options),
        "store": store,
        "master": rank_address(0) if case.shape else "127.0.0.1",
    }


@contextlib.contextmanager
def _processes(case: Case, environ: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    prefix = ["unshare", "--net"] if case.shape else []
    command = [*prefix, sys.executable, "-m", "links.rank"]
    path = [str(_BENCHMARKS), str(_BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    environ = {
        **os.environ,
        **environ,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    ranks: list[subprocess.Popen[str]] = []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    try:
        while len(ranks) < case.world_size:
            ranks.append(subprocess.Popen(command, env=environ, text=True, **pipes))
        yield ranks
    finally:
        for rank, process in enumerate(ranks):
            process.kill()
            process.wait()
            if case.shape:
                unplug(rank)


def _say(process: subprocess.Popen[str], message: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a rank process ended early with exit code {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer
