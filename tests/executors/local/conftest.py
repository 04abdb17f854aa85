from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from aiodiloco.executors import LocalProcessExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local") / "runs"


@pytest.fixture(scope="module")
def executor(root: Path) -> Iterator[LocalProcessExecutor]:
    """One executor for all tests of a module, each of which has an event loop of its own."""
    executor = LocalProcessExecutor(root=root, preload=["aiodiloco.testing.entrypoints"])
    yield executor
    anyio.run(executor.close)


@pytest.fixture
def leftovers(root: Path) -> Callable[[], list[str]]:
    """Replica processes that live, and files that were not written to their end."""

    def find() -> list[str]:
        replicas = [
            f"process {replica.pid}: {replica.status()}"
            for supervisor in psutil.Process().children()
            for replica in supervisor.children(recursive=True)
        ]
        return replicas + [f"file {path}" for path in root.rglob(".*")]

    return find
