"""The warm parent of all containers: a process that imported Modal's runtime once and forks it per container.

It is told what to do over a socket of packets, one JSON object each:

    {"start": task_id, "env": {...}, "path": [...], "open": [[number, directory], ...]}
                                  with three descriptors: stdout, stderr, container arguments
    {"signal": number, "task": task_id}

and says `{"ready": true}` once and `{"exited": task_id, "code": n}` for every container. When the socket closes,
because the control plane is done or was killed, it kills every container, removes the directory of their files, and
ends.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from typing import Any

from aiodiloco.executors.local.children import kill_everyone, reap_ended
from aiodiloco.executors.local.linux import die_with_parent

__all__ = ["main"]

_RUNTIME = "modal._container_entrypoint"
_LARGEST_PACKET = 1 << 20


@dataclasses.dataclass
class _Job:
    """What a freshly forked container shall become."""

    env: dict[str, str]
    path: list[str]
    directories: list[tuple[int, str]]
    descriptors: list[int]


class _Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._tasks: dict[int, str] = {}  # by pid
        self.pid = os.getpid()
        self._is_ending = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._wake_read.setblocking(False)

    def warm_up(self, preload: list[str]) -> None:
        """Import what containers shall have imported, and say so."""
        for name in [_RUNTIME, *preload]:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()
        self._say({"ready": True})

    def end(self, *_: object) -> None:
        """Make `serve` return."""
        self._is_ending = True

    def serve(self) -> _Job | None:
        """Return None in the zygote, when the socket has closed; a job in every container."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._is_ending:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_read in ready:
                    self._report_exits()
                if self._control in ready:
                    packet, descriptors = self._receive()
                    if not packet:
                        return None
                    if (job := self._obey(json.loads(packet), descriptors)) is not None:
                        return job
        return None

    def _receive(self) -> tuple[bytes, list[int]]:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, _LARGEST_PACKET, 3)
        except ConnectionResetError:  # closed before it had read all that was said to it
            return b"", []
        return packet, descriptors

    def kill_all(self) -> None:
        """Kill every container, and what it started."""
        for _ in kill_everyone(list(self._tasks), within_s=5):
            pass

    def _report_exits(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        for pid, code in reap_ended():
            if (task := self._tasks.pop(pid, None)) is not None:
                self._say({"exited": task, "code": code})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more: the next read says so
            self._control.send(json.dumps(message).encode())

    def _obey(self, order: dict[str, Any], descriptors: list[int]) -> _Job | None:
        if "signal" in order:
            self._signal(order["task"], order["signal"])
            return None
        pid = os.fork()
        if pid:
            self._tasks[pid] = order["start"]
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        self._leave()
        return _Job(order["env"], order["path"], order["open"], descriptors)

    def _signal(self, task: str, number: int) -> None:
        for pid, known in self._tasks.items():
            if known == task:  # not reaped yet, so the pid is still its own
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    if number == signal.SIGKILL:
                        os.killpg(pid, number)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _leave(self) -> None:
        """In the child: let go of everything that is the zygote's."""
        os.setsid()
        die_with_parent(self.pid)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
        for each in (self._control, self._wake_read, self._wake_write):
            each.close()


def _become_container(job: _Job) -> int:
    """Return the exit code of Modal's container runtime, run as the main program of this process."""
    stdout, stderr, arguments = job.descriptors
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    for number, directory in job.directories:
        opened = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(job.env, MODAL_CONTAINER_ARGUMENTS_PATH=f"/dev/fd/{arguments}")
    sys.path[:] = job.path
    sys.argv[:] = [_RUNTIME]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]  # real streams here
    sys.modules.pop(_RUNTIME, None)  # it runs anew, as __main__
    try:
        runpy.run_module(_RUNTIME, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    return 0


def _leave_at_once(exit_code: list[int]) -> None:
    """Skip freeing every object of every imported module, which takes long where torch is one of them."""
    if exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code[0])


def main(control: int, parent: int, directory: str, preload: list[str]) -> None:
    """Import the runtime and `preload`, fork containers until the socket `control` closes, remove the directory."""
    exit_code: list[int] = []
    atexit.register(_leave_at_once, exit_code)  # registered first, runs last
    zygote = _Zygote(socket.socket(fileno=control))
    job = None
    try:
        # Not SIGKILL when the control plane's process dies: there is something to clear away.
        signal.signal(signal.SIGTERM, zygote.end)
        die_with_parent(parent, signal.SIGTERM)
        zygote.warm_up(preload)
        job = zygote.serve()
    finally:
        if job is None and os.getpid() == zygote.pid:
            zygote.kill_all()
            shutil.rmtree(directory, ignore_errors=True)
            exit_code.append(0)
    if job is not None:
        exit_code.append(_become_container(job))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
