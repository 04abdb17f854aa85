"""The executor contract holds for both executors, through Modal's client and Modal's container runtime."""

from __future__ import annotations

import pytest

from aiodiloco.testing.executors import ExecutorTests


class TestModalSpawnExecutor(ExecutorTests):
    """The contract, for the user's own functions."""

    @pytest.fixture
    def executor(self, spawner):
        return spawner


class TestModalExecutor(ExecutorTests):
    """The contract, for any importable function."""

    @pytest.fixture
    def executor(self, modal_executor):
        return modal_executor
