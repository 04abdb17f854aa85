"""Start a supervisor, and hold the lifeline that it dies with."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

from aiodiloco.errors import ExecutorError
from aiodiloco.executors.local.directory import working_directory

__all__ = ["SupervisorHolder"]

_READY_BOUND_S = 30.0
_PREFIX = "aiodiloco-"
_SOCKET = "s"
_OLD_S = 60.0  # in which a supervisor that has its socket listens on it
_LONGEST_DIRECTORY = 80  # a Unix socket's path may have 104 bytes on macOS, 108 on Linux


class SupervisorHolder:
    """Starts at most one living supervisor at a time.

    Usable from any thread; its methods block, so an event loop calls them in a worker thread.
    """

    def __init__(self, *, detach: bool, grace_s: float) -> None:
        self._detach = detach
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = ""
        self._lifeline = -1  # a bare descriptor: losing the executor object must not end its replicas
        _holders.add(self)

    def socket(self) -> str:
        """Return the socket of the living supervisor, after starting one if there is none."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._release()
                _remove_directory(self._socket)
                self._start()
            return self._socket

    def close(self, *, within_s: float) -> None:
        """Let go of the lifeline, and, unless detached, wait until the supervisor has killed its replicas and ended."""
        with self._lock:
            process, self._process = self._process, None
            socket, self._socket = self._socket, ""
            self._release()
        if process is not None and not self._detach:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(within_s)
                _remove_directory(socket)

    def forget(self) -> None:
        """In a forked child of the driver: be as new. Its lifeline has been closed."""
        self._lock = threading.Lock()
        self._socket = ""  # the supervisor is the driver's; this process starts its own
        self._process = None
        self._lifeline = -1

    def _release(self) -> None:
        if self._lifeline >= 0:
            _lifelines.discard(self._lifeline)
            os.close(self._lifeline)
            self._lifeline = -1

    def _start(self) -> None:
        directory = _private_directory()
        self._socket = str(directory / _SOCKET)
        options = {"socket": self._socket, "detach": self._detach, "grace_s": self._grace_s}
        command = [sys.executable, str(Path(__file__).with_name("boot.py")), json.dumps(options)]
        inlet, self._lifeline = os.pipe()
        _lifelines.add(self._lifeline)
        with contextlib.closing(os.fdopen(inlet)), (directory / "stderr").open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
                command,
                stdin=inlet,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                cwd=None if working_directory() else "/",  # in one that is gone, importing torch ends the process
            )
        _wait_until_ready(self._process, directory / "stderr")
        threading.Thread(target=self._process.wait, daemon=True, name="aiodiloco-reaper").start()


_holders: weakref.WeakSet[SupervisorHolder] = weakref.WeakSet()
_lifelines: set[int] = set()  # also those of holders that are gone: their replicas end with this process, too


def _let_go_in_child() -> None:
    """In a forked child of the driver, which must not keep lifelines open when the driver dies."""
    for lifeline in _lifelines:
        os.close(lifeline)
    _lifelines.clear()
    for holder in list(_holders):
        holder.forget()


os.register_at_fork(after_in_child=_let_go_in_child)  # once: such hooks can never be removed


def _private_directory() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) > _LONGEST_DIRECTORY:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes it private
    remove_abandoned(Path(parent))
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))


def remove_abandoned(parent: Path) -> None:
    """Remove the directories of supervisors that were killed together with their drivers. Never fails."""
    with contextlib.suppress(OSError):
        for directory in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if _is_a_supervisors(directory) and _is_abandoned(directory / _SOCKET):
                    shutil.rmtree(directory, ignore_errors=True)


def _is_a_supervisors(directory: Path) -> bool:
    """Return whether a supervisor made this, long enough ago that it listens on its socket if it lives."""
    made, end = directory.lstat(), (directory / _SOCKET).lstat()
    is_private = stat.S_ISDIR(made.st_mode) and stat.S_IMODE(made.st_mode) == stat.S_IRWXU
    return (
        is_private and made.st_uid == os.getuid() and stat.S_ISSOCK(end.st_mode) and time.time() > end.st_mtime + _OLD_S
    )


def _is_abandoned(path: Path) -> bool:
    """Return whether a supervisor listened here and does not any more; one that is stopped or busy still does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # not there yet, or not to be known
            return False
        return False


def _remove_directory(socket: str) -> None:
    """Remove the directory of a supervisor that has ended; it does so itself unless it was killed."""
    if socket:
        shutil.rmtree(Path(socket).parent, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], errors: Path) -> None:
    assert process.stdout is not None
    with process.stdout as outlet:
        readable, _, _ = select.select([outlet], [], [], _READY_BOUND_S)
        if readable and outlet.readline() == b"ready\n":
            return
    process.kill()
    process.wait()
    said = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
    shutil.rmtree(errors.parent, ignore_errors=True)
    raise ExecutorError(
        f"the supervisor of local replicas did not start within {_READY_BOUND_S:g} s: {said or 'no output'}"
    )
