"""`ExecutorTests`: what every executor must do, as tests to inherit."""

from __future__ import annotations

import pytest

_PARTS = ["executor_collecting", "executor_launching", "executor_watching"]
pytest.register_assert_rewrite(*(f"aiodiloco.testing.{part}" for part in _PARTS))

from aiodiloco.testing.executor_collecting import CollectTests  # noqa: E402 - only modules imported later are rewritten
from aiodiloco.testing.executor_launching import LaunchTests  # noqa: E402
from aiodiloco.testing.executor_watching import WatchTests  # noqa: E402

__all__ = ["ExecutorTests"]


class ExecutorTests(LaunchTests, CollectTests, WatchTests):
    """The contract of `aiodiloco.executors.ServerlessExecutor`, line by line.

    Inherit it, give it two fixtures, and change nothing else:

        class TestMyExecutor(ExecutorTests):
            @pytest.fixture
            async def executor(self):
                async with MyExecutor() as executor:
                    yield executor

            @pytest.fixture
            def leftovers(self):
                return my_backend.list_containers

    `leftovers` is a function that returns the names of what still exists of replicas that have ended: processes,
    containers, half-written files. The replicas must be able to import `aiodiloco.testing.entrypoints`.

    The tests are plain `async def` ones without a marker: use pytest-asyncio with `asyncio_mode = "auto"`, or mark
    your class.
    """
