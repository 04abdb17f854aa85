"""How commands end: one line for an error, and the exit codes of a good citizen of the shell.

0    done, and the run succeeded       1    it failed, or could not be done
2    the command line is wrong         124  a time limit passed        130  interrupted
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

import anyio
import typer

from aiodiloco.cli.extras import MissingExtraError
from aiodiloco.errors import AiodilocoError
from aiodiloco.run import RunOutcome
from aiodiloco.run.decide import TIMEOUT_REASON

if TYPE_CHECKING:
    import types
    from collections.abc import Awaitable, Callable, Iterator

    from aiodiloco.run import RunResult

__all__ = ["TIMED_OUT", "ending_in_good_order", "exit_with", "fail", "run_command"]

TIMED_OUT = 124
_INTERRUPTED = 130


def run_command(work: Callable[[], Awaitable[None]], *, interrupted: str | Callable[[], str] = "interrupted") -> None:
    """Run the async part of a command to its end; SIGTERM interrupts it as Ctrl-C does.

    Args:
        work: What to do.
        interrupted: What to say when that was interrupted, after it has cleaned up.
    """
    try:
        with ending_in_good_order():
            anyio.run(work)
    except (AiodilocoError, MissingExtraError) as exc:
        fail(str(exc))
    except (ValueError, TypeError) as exc:  # after AiodilocoError: some of those are ValueErrors too
        raise typer.BadParameter(str(exc)) from exc
    except KeyboardInterrupt:
        fail(interrupted if isinstance(interrupted, str) else interrupted(), code=_INTERRUPTED)
    except OSError as exc:  # after AiodilocoError, likewise: nobody reads what is printed, or it cannot be written
        raise typer.Exit(1) from exc


def exit_with(result: RunResult) -> NoReturn:
    """Exit as the run ended."""
    if result.outcome is RunOutcome.succeeded:
        raise typer.Exit(0)
    raise typer.Exit(TIMED_OUT if result.reason.startswith(TIMEOUT_REASON) else 1)


def fail(message: str, *, code: int = 1) -> NoReturn:
    """Say what is wrong, on stderr, and exit."""
    typer.echo(f"aiodiloco: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def ending_in_good_order() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP unless it is ignored, interrupt what runs inside as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, frame: types.FrameType | None) -> None:
    on_sigint = signal.getsignal(signal.SIGINT)
    if callable(on_sigint):  # the event loop's own: it cancels the main task
        on_sigint(signal.SIGINT, frame)
    else:  # ignored, as in a background job of a script
        raise KeyboardInterrupt
