"""Executors by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiodiloco.cli.extras import needs_extra
from aiodiloco.errors import RunNotFoundError
from aiodiloco.executors import LocalProcessExecutor
from aiodiloco.executors.entrypoint import find
from aiodiloco.run.launching import uri_of
from aiodiloco.run.record import RunRecord, read_record
from aiodiloco.store import open_store

if TYPE_CHECKING:
    from aiodiloco.executors.core import Executor

__all__ = ["BACKENDS", "executor_of_run", "executor_to_launch", "executor_to_manage"]

BACKENDS = ("local", "modal")


def executor_to_launch(
    backend: str, entrypoint: str | None, *, modal_function: str | None, outlives_driver: bool
) -> tuple[Executor, str | None]:
    """Return an executor, and the entrypoint to give it: None where that is the executor's own function.

    Args:
        backend: `"local"` or `"modal"`.
        entrypoint: `"module:function"`. On Modal, a function decorated with `@app.function` there is called as it is,
            its app deployed for that; any other is run by an app made for it.
        modal_function: `"app/function"` on Modal, instead of an entrypoint.
        outlives_driver: Whether replicas go on when this process ends.

    Raises:
        ValueError: a backend that is not known, or no entrypoint.
        EntrypointError: it cannot be imported.
    """
    _check(backend, modal_function)
    if modal_function is not None:
        return _spawn_executor(modal_function), None
    if entrypoint is None:
        raise ValueError('there is nothing to run: give an entrypoint as "module:function"')
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it; a console script does not
    if backend == "local":
        return LocalProcessExecutor(detach=outlives_driver), entrypoint
    with needs_extra("modal"):
        import modal

        from aiodiloco.executors.modal import ModalExecutor, ModalSpawnExecutor
    found = find(entrypoint)
    if isinstance(found, modal.Function):
        return ModalSpawnExecutor(found, deploy=True), None
    return ModalExecutor(keep=outlives_driver), entrypoint


def executor_to_manage(backend: str, *, modal_function: str | None) -> Executor:
    """Return an executor for replicas that run already."""
    _check(backend, modal_function)
    if modal_function is not None:
        return _spawn_executor(modal_function)
    if backend == "local":
        return LocalProcessExecutor(detach=True)
    with needs_extra("modal"):
        from aiodiloco.executors.modal import ModalExecutor
    return ModalExecutor(keep=True)


async def executor_of_run(store: str, run_id: str, *, modal_function: str | None) -> Executor:
    """Return an executor for the replicas of a run.

    Raises:
        RunNotFoundError: there is no such run.
    """
    record = await _read(store, run_id)
    return executor_to_manage(record.backend_name, modal_function=modal_function)


async def _read(store: str, run_id: str) -> RunRecord:
    uri = uri_of(store, run_id)
    async with open_store(uri) as run_store:
        if (record := await read_record(run_store)) is None:
            raise RunNotFoundError(f"no run {run_id!r} under {uri}: check store and run; `aiodiloco ps` lists them")
        return record


def _check(backend: str, modal_function: str | None) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be {' or '.join(BACKENDS)}, not {backend!r}")
    if modal_function is not None and backend != "modal":
        raise ValueError(f"a Modal function needs backend modal, not {backend}")


def _spawn_executor(name: str) -> Executor:
    app, slash, function = name.partition("/")
    if not (app and slash and function):
        raise ValueError(f"a Modal function is named APP/FUNCTION, not {name!r}")
    with needs_extra("modal"):
        import modal

        from aiodiloco.executors.modal import ModalSpawnExecutor
    looked_up: modal.Function[..., Any, Any] = modal.Function.from_name(app, function)
    return ModalSpawnExecutor(looked_up)
