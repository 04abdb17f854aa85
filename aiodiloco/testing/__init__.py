"""Conformance suites to inherit, for this library's backends and for your own, and a store that fails on purpose.

The suites need pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodiloco.testing.codecs import CodecTests
    from aiodiloco.testing.executors import ExecutorTests
    from aiodiloco.testing.faulty_store import Faults, FaultyStore
    from aiodiloco.testing.stores import StoreTests

__all__ = ["CodecTests", "ExecutorTests", "Faults", "FaultyStore", "StoreTests"]

_SUITES = {
    "CodecTests": "aiodiloco.testing.codecs",
    "ExecutorTests": "aiodiloco.testing.executors",
    "StoreTests": "aiodiloco.testing.stores",
}
_TOOLS = {
    "Faults": "aiodiloco.testing.faulty_store",
    "FaultyStore": "aiodiloco.testing.faulty_store",
}


def __getattr__(name: str) -> object:
    """Import a suite when it is asked for: replicas import their test entrypoints from here, and not pytest."""
    if name in _TOOLS:
        return getattr(importlib.import_module(_TOOLS[name]), name)
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(_SUITES[name])
    return getattr(importlib.import_module(_SUITES[name]), name)
