"""Where local replicas leave their traces: `<root>/<run_id>/<rank>-<incarnation>/`, readable by any process.

    launch-<launch_id>            which launch this run id belongs to
    <rank>-<incarnation>/
        spawned.json              the socket of its supervisor
        output.log                stdout and stderr, as they were written
        outcome.json              what the replica says of its end
        exit.json                 how it ended: a ReplicaResult; written once, last, by the supervisor

Only the standard library is imported here: the supervisor starts with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EXIT",
    "LOG",
    "OUTCOME",
    "SPAWNED",
    "claim_run",
    "default_root",
    "is_answering",
    "prune",
    "read_json",
    "working_directory",
    "write_json",
]

EXIT = "exit.json"
LOG = "output.log"
OUTCOME = "outcome.json"
SPAWNED = "spawned.json"

_KEPT_S = 7 * 24 * 3600.0


def default_root() -> Path:
    """Return `$XDG_STATE_HOME/aiodiloco/local`, by default under `~/.local/state`."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "aiodiloco" / "local"


def working_directory() -> str:
    """Return this process's working directory, or "" if it was removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write the file whole: a reader sees all of it or no file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(fields), encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote, or None if there is no such file, or only what a power loss left of it."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def claim_run(root: Path, run_id: str, launch_id: str) -> Path:
    """Return the run's directory, made by the first replica of this launch.

    Raises:
        FileExistsError: another launch used this run id.
    """
    run, mark = root / run_id, f"launch-{launch_id}"
    fresh = root / f".{run_id}.{launch_id}.{os.getpid()}"
    fresh.mkdir(parents=True, mode=0o700)
    try:
        (fresh / mark).touch()
        fresh.rename(run)  # atomic; refused if `run` exists and is not empty
    except OSError:
        shutil.rmtree(fresh)
        if not (run / mark).exists():
            raise FileExistsError(
                f"the run id {run_id!r} is already used in {root}; choose another, or remove {run}"
            ) from None
    return run


def prune(root: Path, *, now: float | None = None) -> None:
    """Remove the runs that ended more than seven days ago. Leaves what it may not read or remove; never fails."""
    oldest = (time.time() if now is None else now) - _KEPT_S
    with contextlib.suppress(OSError):
        for run in list(root.iterdir()):
            _prune_run(run, oldest)


def _prune_run(run: Path, oldest: float) -> None:
    with contextlib.suppress(OSError):
        if run.is_dir() and _last_change(run) < oldest and not _is_running(run):
            shutil.rmtree(run, ignore_errors=True)


def _last_change(run: Path) -> float:
    times = []
    for path in (run, *run.rglob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:  # a sibling process prunes too
            continue
    return max(times, default=float("inf"))


def _is_running(run: Path) -> bool:
    """A quiet replica may write nothing for days; then its supervisor still answers."""
    return any(
        not (replica / EXIT).exists() and is_answering(str((read_json(replica / SPAWNED) or {}).get("socket", "")))
        for replica in run.glob("*-*/")
    )


def is_answering(path: str) -> bool:
    """Return whether a process listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (OSError, ValueError):  # gone, or no path at all
            return False
        return True
