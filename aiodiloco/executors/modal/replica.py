"""The function that `ModalExecutor` has called in every container."""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import TYPE_CHECKING

from aiodiloco.executors.entrypoint import IMPORTING_MAIN, resolve
from aiodiloco.executors.json_values import find_non_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from aiodiloco.records import JSON

__all__ = ["run_replica"]


def run_replica(*, rank: int, entrypoint: str, arguments: Mapping[str, JSON]) -> object:
    """Return what the entrypoint returns for this rank, if that is JSON.

    Cancelling the call raises an exception in the main thread, where this runs: a sync entrypoint gets it as it is, an
    async one is cancelled.

    Raises:
        TypeError: the entrypoint returned something else.
    """
    value = _import(entrypoint)(rank=rank, **arguments)
    if inspect.iscoroutine(value):
        value = asyncio.run(_finish(value))
    if problem := find_non_json(value, "the return value"):
        remedy = "return numbers, strings, lists and dicts, and put larger things in the store"
        raise TypeError(f"{problem}; results travel as JSON: {remedy}")
    return value


def _import(entrypoint: str) -> Callable[..., object]:
    """Import the entrypoint's module; a script that launches replicas then, outside its main guard, is told so."""
    os.environ[IMPORTING_MAIN] = "1"
    try:
        return resolve(entrypoint)
    finally:
        del os.environ[IMPORTING_MAIN]


async def _finish(coroutine: Coroutine[object, object, object]) -> object:
    return await coroutine
