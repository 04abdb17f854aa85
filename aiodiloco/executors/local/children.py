"""The supervisor's children: fork, signal, reap."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from aiodiloco.executors.local.linux import children

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Child", "kill_everyone", "reap_ended"]


@dataclasses.dataclass
class Child:
    """A replica as its supervisor sees it; its pid stays valid until it is reaped here."""

    call_id: str
    rank: int
    pid: int
    directory: Path
    timeout_s: float
    overdue_at: float
    kill_at: float = float("inf")
    asked: str | None = None
    waiters: list[Any] = dataclasses.field(default_factory=list)

    def terminate(self, why: str, *, grace_s: float) -> None:
        """Send SIGTERM once; `kill_if_due` follows up after `grace_s`."""
        if self.asked is None:
            self.asked = why
            self.kill_at = time.monotonic() + grace_s
            self.overdue_at = float("inf")
            self.signal(signal.SIGTERM)

    def follow_up(self, *, grace_s: float) -> None:
        """Do what time demands: end a replica over its bound, kill one that did not heed SIGTERM."""
        now = time.monotonic()
        if now >= self.overdue_at:
            self.terminate("timeout", grace_s=grace_s)
        if now >= self.kill_at:
            self.kill_at = float("inf")
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Signal the replica's process group, or the replica alone if it has not made its group yet."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # no group yet (macOS says EPERM when only the zombie is left)
            os.kill(self.pid, number)


def reap_ended() -> Iterator[tuple[int, int]]:
    """Yield (pid, exit code) of every child that has ended, after killing what is left of its process group."""
    while (pid := _next_ended()) != 0:
        _kill_group(pid)  # before it is reaped: until then no other process can have this id
        _, status = os.waitpid(pid, 0)
        yield pid, os.waitstatus_to_exitcode(status)


def _next_ended() -> int:
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return 0 if ended is None else ended.si_pid


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # no group of its own, or nobody left in it (macOS says EPERM)
        return


def kill_everyone(known: Sequence[int], *, within_s: float) -> Iterator[tuple[int, int]]:
    """Kill the `known` children and all adopted orphans; yield (pid, exit code) of each as it ends."""
    left = set(known)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and (alive := left | set(children())):
        for pid in alive:
            with contextlib.suppress(PermissionError):  # a setuid program
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the id is still theirs
        for pid, exit_code in reap_ended():
            left.discard(pid)
            yield pid, exit_code
        time.sleep(0.002)
