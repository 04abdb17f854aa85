"""The executor contract holds for both executors, through Modal's client and Modal's container runtime."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from aiodiloco.executors.modal import app
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


def test_the_default_image_has_what_replicas_import() -> None:
    """With torch, and with buckets; what talks to Modal is in every container anyway."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(app._NEEDS) == {*project["dependencies"], *extras["torch"], *extras["s3"]}
