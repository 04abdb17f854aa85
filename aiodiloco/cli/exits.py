"""How commands end: one line for an error, and the exit codes of a good citizen of the shell.

0    done, and the run succeeded       1    it failed, or could not be done
2    the command line is wrong         124  a time limit passed        130  interrupted
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

import anyio
import typer

from aiodiloco.cli.extras import MissingExtraError
from aiodiloco.errors import AiodilocoError
from aiodiloco.run import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aiodiloco.run import RunResult

__all__ = ["TIMED_OUT", "exit_with", "fail", "run_command"]

TIMED_OUT = 124
_INTERRUPTED = 130


def run_command(work: Callable[[], Awaitable[None]], *, interrupted: str = "interrupted") -> None:
    """Run the async part of a command to its end; SIGTERM interrupts it as Ctrl-C does.

    Args:
        work: What to do.
        interrupted: What to say when that was interrupted, after it has cleaned up.
    """
    try:
        with _sigterm_as_sigint():
            anyio.run(work)
    except (AiodilocoError, MissingExtraError) as exc:
        fail(str(exc))
    except (ValueError, TypeError) as exc:  # after AiodilocoError: some of those are ValueErrors too
        raise typer.BadParameter(str(exc)) from exc
    except KeyboardInterrupt:
        fail(interrupted, code=_INTERRUPTED)


def exit_with(result: RunResult) -> NoReturn:
    """Exit as the run ended."""
    if result.outcome is RunOutcome.succeeded:
        raise typer.Exit(0)
    raise typer.Exit(TIMED_OUT if "timeout" in result.reason else 1)


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Say what is wrong, on stderr, and exit."""
    typer.echo(f"aiodiloco: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
