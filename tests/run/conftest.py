from __future__ import annotations

import itertools

import pytest

from aiodiloco.executors import Executor

from .scripted import World, WorldBackend

_numbers = itertools.count()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def backend(world: World) -> WorldBackend:
    return WorldBackend(world)


@pytest.fixture
def executor(backend: WorldBackend) -> Executor:
    return Executor(backend)


@pytest.fixture
def store() -> str:
    """The URI of a fresh store of this process."""
    return f"memory://runs-{next(_numbers)}"
