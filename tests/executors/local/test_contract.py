from __future__ import annotations

from aiodiloco.testing.executors import ExecutorTests


class TestLocalProcessExecutor(ExecutorTests):
    """The executor contract holds for local processes."""
