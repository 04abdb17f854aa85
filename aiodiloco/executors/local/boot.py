"""The first file a supervisor process runs: makes sure that its exits, and those of its forks, are quick.

Run by path, before anything else is imported: an exit handler registered first runs last. By then threads have been
joined and all other exit handlers have run; what is left is freeing every object of every imported module, which for
torch takes 0.1 s of a core per replica and does nothing for a process that ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path

__all__: list[str] = []


def _leave_at_once(exit_code: list[int]) -> None:
    """End with the exit code, or by the signal where it is negative."""
    if not exit_code:  # an error that nobody caught: leave it to the interpreter
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code[0] < 0:
        signal.signal(-exit_code[0], signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code[0])
    os._exit(exit_code[0])


def _main() -> None:
    exit_code: list[int] = []
    atexit.register(_leave_at_once, exit_code)
    sys.path[0] = str(Path(__file__).resolve().parents[3])  # where this package is, not this file's directory

    from aiodiloco.executors.local.supervisor import main

    exit_code.append(main())


if __name__ == "__main__":
    _main()
