"""The process that forks local replicas, watches them, and outlives no one it should not.

Started by `boot.py`; one thread and one selector, so that forking is safe and
quick. Requests come over a Unix socket, one JSON line per connection; the lifeline is standard input, whose other end
the driver holds: when the driver ends, however it ends, the replicas are killed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiodiloco.executors.local import replica
from aiodiloco.executors.local.children import Child, kill_everyone, reap_ended
from aiodiloco.executors.local.directory import EXIT, OUTCOME, SPAWNED, claim_run, read_json, write_json
from aiodiloco.executors.local.linux import adopt_orphans
from aiodiloco.executors.local.verdict import judge, tell_unrecorded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Supervisor", "main"]

_MAX_REQUEST_BYTES = 64 << 20


class Supervisor:
    """Serves the requests of one executor, and of any process that holds one of its handles."""

    def __init__(self, socket_path: str, *, detach: bool, grace_s: float) -> None:
        self._socket_path = socket_path
        self._detach = detach
        self._grace_s = grace_s
        self._driver_is_gone = False
        self._end_now = False
        self._children: dict[int, Child] = {}
        self._unrecorded: dict[str, dict[str, Any]] = {}  # call id -> how it ended, where no file could hold it
        self._closers: list[Callable[[], object]] = []
        self._selector = selectors.DefaultSelector()
        self._closers.append(self._selector.close)
        self._listen()
        self._wake_on_signals()
        self._selector.register(0, selectors.EVENT_READ, self._read_lifeline)

    def run(self) -> dict[str, Any] | None:
        """Serve until there is nothing left to do and return None; in a forked child return what it shall run."""
        while not self._end_now and not (self._driver_is_gone and not self._children):
            for key, _ in self._selector.select(self._seconds_to_next_duty()):
                spec = key.data()
                if spec is not None:
                    return dict(spec)
            for child in self._children.values():
                child.follow_up(grace_s=self._grace_s)
            for pid, exit_code in reap_ended():
                self._note_exit(pid, exit_code)
        self._kill_all()
        return None

    def close(self) -> None:
        """Close every descriptor of the supervisor; a forked child does this too."""
        for close in self._closers:
            close()
        self._closers.clear()

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(self._socket_path)
        listener.listen(4096)
        self._closers.append(listener.close)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))

    def _wake_on_signals(self) -> None:
        inlet, outlet = socket.socketpair()
        for end in (inlet, outlet):
            end.setblocking(False)
            self._closers.append(end.close)
        signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
        self._closers.append(lambda: signal.set_wakeup_fd(-1))
        self._selector.register(inlet, selectors.EVENT_READ, lambda: self._read_signals(inlet))
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _read_signals(self, inlet: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in inlet.recv(4096):
                self._end_now = True

    def _read_lifeline(self) -> None:
        if os.read(0, 1):
            return
        self._selector.unregister(0)
        self._driver_is_gone = True
        self._end_now = not self._detach

    def _seconds_to_next_duty(self) -> float | None:
        first = min((child.next_duty for child in self._children.values()), default=float("inf"))
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is gone again, or there are no descriptors left just now
            return
        connection.setblocking(False)
        self._closers.append(connection.close)
        received = bytearray()
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection, received))

    def _receive(self, connection: socket.socket, received: bytearray) -> dict[str, Any] | None:
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        received += data
        if not data or len(received) > _MAX_REQUEST_BYTES:
            self._hang_up(connection)
        elif data.endswith(b"\n"):
            line = bytes(received)
            received.clear()
            try:
                return self._serve(connection, json.loads(line))
            except (ValueError, KeyError, TypeError) as exc:  # not from this library, or not from this version of it
                self._reply(connection, {"error": f"{type(exc).__name__}: {exc}"})
        return None

    def _hang_up(self, connection: socket.socket) -> None:
        for child in self._children.values():
            with contextlib.suppress(ValueError):
                child.waiters.remove(connection)
        self._selector.unregister(connection)
        self._closers.remove(connection.close)
        connection.close()

    def _reply(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the asker is gone
            connection.send(json.dumps(answer).encode() + b"\n")

    def _serve(self, connection: socket.socket, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["op"] == "spawn":
            return self._spawn(connection, request)
        child = next((c for c in self._children.values() if c.call_id == request.get("call_id")), None)
        if request["op"] == "wait" and child is not None:
            child.waiters.append(connection)
            return None
        if request["op"] == "cancel" and child is not None:
            child.terminate("cancel", grace_s=self._grace_s)
        self._reply(connection, {"running": True} if child is not None else self._answer_ended(request.get("call_id")))
        return None

    def _answer_ended(self, call_id: object) -> dict[str, Any]:
        row = self._unrecorded.get(str(call_id))
        return {"running": False} if row is None else {"running": False, "row": row}

    def _spawn(self, connection: socket.socket, request: dict[str, Any]) -> dict[str, Any] | None:
        try:
            _preload(request["preload"])
            run = claim_run(Path(request["root"]), request["run_id"], request["launch_id"])
            directory = run / f"{request['rank']}-{request['incarnation']}"
            directory.mkdir(mode=0o700)
            write_json(directory / SPAWNED, {"socket": self._socket_path})
            pid = self._fork()
        except OSError as exc:
            self._reply(connection, {"error": _explain(exc, request["root"])})
            return None
        if pid == 0:
            return {**request, "directory": str(directory)}
        self._children[pid] = Child(
            call_id=request["call_id"],
            rank=request["rank"],
            pid=pid,
            directory=directory,
            timeout_s=request["timeout_s"],
            overdue_at=time.monotonic() + request["timeout_s"],
        )
        self._reply(connection, {"pid": pid, "directory": str(directory)})
        return None

    def _fork(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child can handle it
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.close()
        return pid

    def _note_exit(self, pid: int, exit_code: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:  # an orphan that had been adopted
            return
        row = judge(_read_outcome(child), exit_code, asked=child.asked, timeout_s=child.timeout_s)
        row.update(rank=child.rank, call_id=child.call_id)
        try:
            write_json(child.directory / EXIT, row)
        except OSError as exc:  # the disk is full or the directory was removed: answers tell the end instead
            self._unrecorded[child.call_id] = tell_unrecorded(row, f"in {child.directory}: {exc.strerror}")
        for connection in child.waiters:
            self._reply(connection, self._answer_ended(child.call_id))

    def _kill_all(self) -> None:
        for child in self._children.values():
            child.asked = child.asked or "driver"
            child.signal(signal.SIGKILL)
        for pid, exit_code in kill_everyone(list(self._children), within_s=5.0):
            self._note_exit(pid, exit_code)


def _read_outcome(child: Child) -> dict[str, Any] | None:
    try:
        return read_json(child.directory / OUTCOME)
    except (OSError, ValueError):
        return None


def _explain(exc: OSError, root: str) -> str:
    if isinstance(exc, FileExistsError) or exc.errno == errno.EAGAIN:  # says it all; no more processes allowed
        return str(exc)
    return f"{exc}; give a root that can be written, not {root}"


def _preload(modules: list[str]) -> None:
    """Import modules once, for all replicas to come. Only an optimisation, so a failure is the replica's to report."""
    for name in modules:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
            gc.freeze()  # keeps the collector from touching, and so copying, shared pages in every child


def main() -> int:
    """Serve until the driver is gone; in a forked child, run the replica. Returns the exit code of this process."""
    options = json.loads(sys.argv[1])
    adopt_orphans()
    supervisor = Supervisor(options["socket"], detach=options["detach"], grace_s=options["grace_s"])
    own_pid = os.getpid()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    spec = supervisor.run()
    if spec is not None:
        return replica.run(spec, parent=own_pid)
    supervisor.close()
    shutil.rmtree(Path(options["socket"]).parent, ignore_errors=True)
    return 0
