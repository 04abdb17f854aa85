"""The object store of the benchmarks: nginx, made to speak enough S3."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BUCKET", "serve", "wipe"]

BUCKET = "bench"
_HERE = Path(__file__).parent
_MODULES = Path("/usr/lib/nginx/modules")


@contextlib.contextmanager
def serve(root: Path, host: str, *, latency_s: float, port: int = 9000) -> Iterator[str]:
    """Run the server on a directory, best a tmpfs, for as long as the context is open; give its endpoint URL."""
    if not shutil.which("nginx") or not (_MODULES / "ngx_http_lua_module.so").exists():
        raise SystemExit("the server of this benchmark is nginx with Lua: apt install nginx libnginx-mod-http-lua")
    for name in ("objects", "incoming"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
    config = (_HERE / "nginx.conf.in").read_text()
    values = {"MODULES": _MODULES, "ROOT": root, "HERE": _HERE, "LATENCY_S": latency_s, "ADDRESS": f"{host}:{port}"}
    for name, value in values.items():
        config = config.replace(f"@{name}@", str(value))
    (root / "nginx.conf").write_text(config)
    process = subprocess.Popen(["nginx", "-p", root, "-c", root / "nginx.conf", "-e", root / "error.log"])
    try:
        _wait_for(host, port, process, root / "error.log")
        yield f"http://{host}:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wipe(root: Path) -> None:
    """Delete the chunks of earlier rounds, so that the memory they take is free for the next."""
    for path in (root / "objects").glob("*~rounds~*"):
        path.unlink(missing_ok=True)


def _wait_for(host: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"nginx did not start: {log.read_text()[-500:]}")
