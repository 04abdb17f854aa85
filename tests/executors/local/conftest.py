from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from aiodiloco.executors import LocalProcessExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[LocalProcessExecutor]:
    async with LocalProcessExecutor(root=tmp_path / "runs", preload=["aiodiloco.testing.entrypoints"]) as executor:
        yield executor


@pytest.fixture
def leftovers(tmp_path: Path) -> Callable[[], list[str]]:
    """Replica processes that live, and files that were not written to their end."""

    def find() -> list[str]:
        replicas = [
            f"process {replica.pid}: {replica.status()}"
            for supervisor in psutil.Process().children()
            for replica in supervisor.children(recursive=True)
        ]
        return replicas + [f"file {path}" for path in (tmp_path / "runs").rglob(".*")]

    return find
