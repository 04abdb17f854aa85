"""A pytest fixture: `from aiodiloco.testing.modal.fixture import loopback_modal` in your `conftest.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aiodiloco.testing.modal.loopback import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["loopback_modal"]


@pytest.fixture(scope="session")
def loopback_modal() -> Iterator[LoopbackModal]:
    """A control plane for all tests; ends the faults of a test that left some in force only when the session ends."""
    with LoopbackModal() as modal:
        yield modal
