"""Running a program in namespaces of its own: whatever it starts, mounts or plugs together goes when it ends.

Processes, network interfaces, routes and the tmpfs live in a PID, a network and a mount namespace that the kernel
tears down with the program, also when it is killed. No address is visible outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

__all__ = ["SCRATCH", "enter", "is_inside", "is_possible", "run"]

SCRATCH = "/srv"
"""A tmpfs inside; the directory under it outside stays untouched."""

_INSIDE = "AIODILOCO_BENCHMARK_INSIDE"
_NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def is_inside() -> bool:
    """Return whether `enter` has done its work."""
    return _INSIDE in os.environ


def is_possible() -> bool:
    """Return whether this system lets this user have namespaces."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return not subprocess.run([*_command(), "true"], check=False, capture_output=True).returncode


def enter() -> None:
    """Start this program again inside, unless it is; in the new process, bring loopback and tmpfs up.

    Exits with a message where the system does not allow namespaces: they need Linux, and root or user namespaces.
    """
    if not is_inside():
        if not is_possible():
            raise SystemExit(
                "emulated links need network namespaces: run this on Linux as root (or allow user namespaces), with "
                "util-linux and iproute2 installed; without them only `--suite loopback` works"
            )
        command = _command()
        os.execvpe(command[0], [*command, sys.executable, *sys.argv], {**os.environ, _INSIDE: "1"})
    run("ip link set lo up")
    run(f"mount -t tmpfs -o size=90%,huge=always tmpfs {SCRATCH}")  # small pages cost the server twice as much


def _command() -> list[str]:
    return ["unshare", *_NAMESPACES, *(["--map-root-user"] if os.getuid() else [])]


def run(command: str) -> str:
    """Return what a command printed; raise when it fails."""
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command!r} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
