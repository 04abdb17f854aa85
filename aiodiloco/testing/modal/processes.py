"""Container processes as the control plane sees them: start one, signal it, hear of its end and of what it prints."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Sequence

    from anyio.abc import TaskGroup

__all__ = ["ContainerProcesses", "ProcessListener", "running_zygote"]

_READY_BOUND_S = 60.0
_CLOSE_BOUND_S = 10.0
_PACKETS = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM


class ProcessListener(Protocol):
    """Who wants to hear of containers."""

    def printed(self, task_id: str, *, is_stderr: bool, data: bytes) -> None:
        """`data` was written to stdout or stderr."""

    def exited(self, task_id: str, code: int) -> None:
        """The process has ended; everything that it printed was reported before."""


class ContainerProcesses:
    """The children of the zygote at the other end of `channel`; works in `task_group` until that is cancelled."""

    def __init__(self, channel: socket.socket, listener: ProcessListener, task_group: TaskGroup) -> None:
        self._channel = channel
        self._listener = listener
        self._task_group = task_group
        self._send_order, self._orders = anyio.create_memory_object_stream[tuple[dict[str, Any], list[int]]](100_000)
        self._outlets: dict[str, list[_Outlet]] = {}
        task_group.start_soon(self._send_all_orders)
        task_group.start_soon(self._hear_exits)

    def start(
        self,
        task_id: str,
        arguments: bytes,
        *,
        env: dict[str, str],
        path: Sequence[str],
        open_at: Sequence[tuple[int, str]],
    ) -> None:
        """Start a container with these ContainerArguments; its end is reported to the listener in any case.

        Args:
            task_id: The container.
            arguments: What its runtime is started with.
            env: Its environment variables, all of them.
            path: Its import path.
            open_at: Directories that it has open from the start, each behind its descriptor's number.
        """
        stdout, write_stdout = os.pipe()
        stderr, write_stderr = os.pipe()
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(arguments)
            file.seek(0)
            descriptor = os.dup(file.fileno())
        self._outlets[task_id] = [_Outlet(stdout, is_stderr=False), _Outlet(stderr, is_stderr=True)]
        for outlet in self._outlets[task_id]:
            self._task_group.start_soon(self._follow, task_id, outlet)
        order = {"start": task_id, "env": env, "path": list(path), "open": list(open_at)}
        self._send_order.send_nowait((order, [write_stdout, write_stderr, descriptor]))

    def signal(self, task_id: str, number: signal.Signals) -> None:
        """Send a signal to a container, SIGKILL to everything that it started too; nothing if it has ended."""
        self._send_order.send_nowait(({"signal": int(number), "task": task_id}, []))

    def drain(self, task_id: str) -> None:
        """Report what a container has printed until now."""
        for outlet in self._outlets.get(task_id, []):
            self._report(task_id, outlet)

    async def _send_all_orders(self) -> None:
        """Pass orders on to the zygote, in order, forever."""
        async for order, descriptors in self._orders:
            await anyio.wait_writable(self._channel)
            try:
                socket.send_fds(self._channel, [json.dumps(order).encode()], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def _hear_exits(self) -> None:
        """Report every end to the listener, until the zygote ends."""
        while True:
            await anyio.wait_readable(self._channel)
            packet = self._channel.recv(4096)
            if not packet:
                return
            message = json.loads(packet)
            if "exited" in message:
                self.drain(message["exited"])
                for outlet in self._outlets.pop(message["exited"], []):
                    outlet.close()
                self._listener.exited(message["exited"], message["code"])

    async def _follow(self, task_id: str, outlet: _Outlet) -> None:
        while outlet.descriptor >= 0:
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BusyResourceError):
                await anyio.wait_readable(outlet.descriptor)
            self._report(task_id, outlet)

    def _report(self, task_id: str, outlet: _Outlet) -> None:
        if data := outlet.read():
            self._listener.printed(task_id, is_stderr=outlet.is_stderr, data=data)

    def close(self) -> None:
        """Close what is still open, without reporting it."""
        for outlets in self._outlets.values():
            for outlet in outlets:
                outlet.close()
        while True:
            try:
                _, descriptors = self._orders.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                break
            for descriptor in descriptors:
                os.close(descriptor)
        self._send_order.close()
        self._orders.close()


class _Outlet:
    """The reading end of a container's stdout or stderr."""

    def __init__(self, descriptor: int, *, is_stderr: bool) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.is_stderr = is_stderr

    def read(self) -> bytes:
        """Return what is there; closes itself at the end."""
        chunks = []
        while self.descriptor >= 0:
            try:
                chunk = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                break
            if not chunk:
                self.close()
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        if self.descriptor >= 0:
            anyio.notify_closing(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1


@contextlib.asynccontextmanager
async def running_zygote(*, env: dict[str, str], preload: Sequence[str]) -> AsyncIterator[tuple[socket.socket, Path]]:
    """Run a zygote; yield its channel, and a directory that is gone, as all its processes are, when the block ends.

    Raises:
        RuntimeError: it did not start.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, _PACKETS)
    ours.setblocking(False)
    with ours:
        with theirs:
            zygote, directory = _spawn(theirs, env=env, preload=preload)
        try:
            await _wait_until_ready(ours, zygote)
            yield ours, directory
        finally:
            ours.close()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_end, zygote, directory)


def _spawn(
    channel: socket.socket, *, env: dict[str, str], preload: Sequence[str]
) -> tuple[subprocess.Popen[bytes], Path]:
    directory = tempfile.mkdtemp(prefix="aiodiloco-modal-")
    command = [sys.executable, "-m", "aiodiloco.testing.modal.zygote", str(channel.fileno()), str(os.getpid())]
    # Not in a worker thread: the zygote dies with the thread that started it.
    zygote = subprocess.Popen(  # noqa: S603 - this interpreter, with arguments of our own
        [*command, directory, *preload],
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__,  # what a module of `preload` prints is no part of this process's own output
        pass_fds=[channel.fileno()],
        env={**env, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        start_new_session=True,
    )
    return zygote, Path(directory)


async def _wait_until_ready(channel: socket.socket, zygote: subprocess.Popen[bytes]) -> None:
    with anyio.move_on_after(_READY_BOUND_S):
        await anyio.wait_readable(channel)
        if channel.recv(4096):
            return
    raise RuntimeError(
        f"the process that forks containers (pid {zygote.pid}) was not ready within {_READY_BOUND_S:g} s: "
        "is every module of `preload` importable? Its stderr says more."
    )


def _end(zygote: subprocess.Popen[bytes], directory: Path) -> None:
    try:
        zygote.wait(_CLOSE_BOUND_S)
    except subprocess.TimeoutExpired:
        zygote.kill()
        zygote.wait()
    shutil.rmtree(directory, ignore_errors=True)  # the zygote did, unless it was killed
