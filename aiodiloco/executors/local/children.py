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

_AGAIN_S = 0.25


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
    again_at: float = float("inf")
    asked: str | None = None
    waiters: list[Any] = dataclasses.field(default_factory=list)

    def terminate(self, why: str, *, grace_s: float) -> None:
        """Send SIGTERM to the whole group; `follow_up` repeats it to the replica, and kills after `grace_s`."""
        if self.asked is None:
            self.asked = why
            self.kill_at = time.monotonic() + grace_s
            self.again_at = time.monotonic() + _AGAIN_S
            self.overdue_at = float("inf")
            self.signal(signal.SIGTERM)

    def follow_up(self, *, grace_s: float) -> None:
        """Do what time demands: end a replica over its bound, kill one that did not heed SIGTERM."""
        now = time.monotonic()
        if now >= self.overdue_at:
            self.terminate("timeout", grace_s=grace_s)
        if now >= self.kill_at:
            self.kill_at = self.again_at = float("inf")
            self.signal(signal.SIGKILL)
        elif now >= self.again_at:
            # A signal that strikes just before a blocking system call is only noted: Python acts on it after the call,
            # which may be never. A second one interrupts the call. A replica that already ends passes over it.
            self.again_at = now + _AGAIN_S
            os.kill(self.pid, signal.SIGTERM)

    @property
    def next_duty(self) -> float:
        """When `follow_up` has something to do next, on the monotonic clock."""
        return min(self.overdue_at, self.kill_at, self.again_at)

    def signal(self, number: signal.Signals) -> None:
        """Signal the replica's process group, or the replica alone if it has not made its group yet."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # no group yet (macOS says EPERM when only the zombie is left)
            os.kill(self.pid, number)


def reap_ended() -> Iterator[tuple[int, int]]:
    """Yield (pid, exit code) of every child that has ended, after killing what is left of its process group."""
    with contextlib.suppress(ChildProcessError):  # there are none
        while (ended := _reap_one()) is not None:
            yield ended


def _reap_one() -> tuple[int, int] | None:
    if hasattr(os, "waitid"):
        peeked = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if peeked is None:
            return None
        _kill_group(peeked.si_pid)  # before it is reaped: until then no other process can have this id
        pid, status = os.waitpid(peeked.si_pid, 0)
    else:  # macOS before Python 3.13
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        _kill_group(pid)
    return pid, os.waitstatus_to_exitcode(status)


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
