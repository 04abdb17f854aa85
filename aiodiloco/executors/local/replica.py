"""The replica's own process, from just after the fork to its exit."""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import inspect
import json
import os
import runpy
import signal
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from aiodiloco.executors.entrypoint import IMPORTING_MAIN, exit_code_of, resolve
from aiodiloco.executors.json_values import find_non_json
from aiodiloco.executors.local.directory import LOG, OUTCOME, write_json
from aiodiloco.executors.local.linux import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

__all__ = ["ReplicaCancelled", "run"]

_MAIN = "__aiodiloco_main__"
_MAX_RESULT_BYTES = 4 << 20
_AGAIN_S = 0.02


class ReplicaCancelled(KeyboardInterrupt):
    """Raised in a sync entrypoint when its replica is cancelled.

    It passes `except Exception`, so `finally` blocks run; and event loops and libraries know how to end in good order
    on a KeyboardInterrupt, where they would swallow another BaseException.
    """


class _Cancellation:
    """Turns the first SIGTERM into a cancellation of whatever the replica is doing."""

    def __init__(self) -> None:
        self.received = False
        self.task: asyncio.Task[Any] | None = None
        self._is_over = False

    def install(self) -> None:
        """Listen from now on; until then the signal ends the process, for there is nothing to clean up."""
        sys.unraisablehook = self._on_unraisable
        signal.signal(signal.SIGTERM, self._on_signal)

    def stop(self) -> None:
        """Ignore signals from now on: how the replica ended is decided."""
        self._is_over = True

    def _on_signal(self, _number: int, frame: types.FrameType | None) -> None:
        if self.received or self._is_over:  # cleanup is not interrupted twice; SIGKILL follows if it takes too long
            return
        self.received = True
        if self.task is not None:
            self.task.get_loop().call_soon_threadsafe(self.task.cancel)
            return
        interrupt = signal.getsignal(signal.SIGINT)
        if isinstance(interrupt, functools.partial) and isinstance(
            getattr(interrupt.func, "__self__", None), asyncio.Runner
        ):
            # The entrypoint's own asyncio.run: it cancels its main task. An exception that strikes between the steps
            # of its tasks could take one with it that the event loop would then wait for without end.
            interrupt(signal.SIGINT, frame)
            return
        raise ReplicaCancelled

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Try again if Python dropped the exception because it struck in a `__del__` or a callback."""
        if not isinstance(unraisable.exc_value, ReplicaCancelled):
            sys.__unraisablehook__(unraisable)
            return
        self.received = False
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM))  # raised in here it would be lost too
        again.daemon = True
        again.start()


def run(spec: Mapping[str, Any], *, parent: int) -> int:
    """Run the entrypoint that `spec` names, write down how it ended, and return the exit code (< 0: a signal)."""
    os.setsid()
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked since before the fork, so none was lost
    directory = Path(spec["directory"])
    _redirect_output(directory / LOG)
    _adopt_driver(spec)
    cancellation = _Cancellation()
    try:
        value = _call(spec, cancellation)
        cancellation.stop()
        outcome, exit_code = _returned(value)
    except BaseException as exc:  # noqa: BLE001 - the top of a process: everything is written down
        cancellation.stop()
        outcome, exit_code = _raised(exc, was_cancelled=cancellation.received)
    write_json(directory / OUTCOME, outcome)
    return exit_code


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(descriptor)
    sys.stdout = _open_stream(1)
    sys.stderr = _open_stream(2)
    faulthandler.enable(file=2)


def _open_stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _adopt_driver(spec: Mapping[str, Any]) -> None:
    """Take over the driver's environment, directory and import path."""
    os.environ.clear()
    os.environ.update(spec["env"])
    try:
        os.chdir(spec["cwd"])
    except OSError:  # the driver's directory is gone
        os.chdir("/")
    sys.path[:] = spec["sys_path"]
    sys.argv[:] = spec["argv"]
    threads = os.environ["OMP_NUM_THREADS"]
    if "torch" in sys.modules and threads.isdigit():  # imported before the fork, so it has not read our environment
        sys.modules["torch"].set_num_threads(int(threads))
    if "numpy.random" in sys.modules:  # Python's own generator reseeds itself after a fork
        sys.modules["numpy.random"].seed()


def _call(spec: Mapping[str, Any], cancellation: _Cancellation) -> object:
    if spec["main"] is not None:
        _import_main(*spec["main"])
    function = resolve(spec["entrypoint"])
    cancellation.install()
    value = function(**spec["args"], rank=spec["rank"])
    return asyncio.run(_finish(value, cancellation)) if inspect.iscoroutine(value) else value


async def _finish(coroutine: Coroutine[Any, Any, object], cancellation: _Cancellation) -> object:
    cancellation.task = asyncio.current_task()
    try:
        return await coroutine
    finally:
        cancellation.task = None


def _import_main(how: str, where: str) -> None:
    """Import the driver's script as `__main__`, with another `__name__` so that its main guard stays shut."""
    os.environ[IMPORTING_MAIN] = "1"
    module = types.ModuleType(_MAIN)
    run_main = runpy.run_module if how == "name" else runpy.run_path
    module.__dict__.update(run_main(where, run_name=_MAIN))
    sys.modules["__main__"] = sys.modules[_MAIN] = module
    del os.environ[IMPORTING_MAIN]


def _returned(value: object) -> tuple[dict[str, Any], int]:
    problem = find_non_json(value, "the return value")
    if problem is None and (size := len(json.dumps(value))) > _MAX_RESULT_BYTES:
        problem = f"the return value is {size} bytes of JSON, more than {_MAX_RESULT_BYTES}"
    if problem is None:
        return {"kind": "returned", "result": value}, 0
    remedy = "return numbers, strings, lists and dicts, and put larger things in the store"
    return {"kind": "raised", "error": f"TypeError: {problem}; results travel as JSON: {remedy}"}, 1


def _raised(exc: BaseException, *, was_cancelled: bool) -> tuple[dict[str, Any], int]:
    if isinstance(exc, SystemExit) and not exc.code and not was_cancelled:
        return {"kind": "returned", "result": None}, 0
    text = "".join(traceback.format_exception(_without_our_frames(exc)))
    said = {"error": f"{type(exc).__qualname__}: {' '.join(str(exc).split())}"[:1000], "traceback": text}
    if was_cancelled:
        is_plain = isinstance(exc, (KeyboardInterrupt, asyncio.CancelledError)) and not exc.args
        return {"kind": "cancelled"} if is_plain else {"kind": "cancelled", **said}, -signal.SIGTERM
    sys.stderr.write(text)
    return {"kind": "raised", **said}, exit_code_of(exc)


def _without_our_frames(exc: BaseException) -> BaseException:
    frames, frame = [], exc.__traceback__
    while frame is not None:
        frames.append(frame)
        frame = frame.tb_next
    ours = [index for index, frame in enumerate(frames) if frame.tb_frame.f_code.co_filename == __file__]
    theirs = frames[ours[-1] + 1 :] if ours else frames
    return exc.with_traceback(theirs[0]) if theirs else exc
