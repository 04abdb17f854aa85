"""Pytest fixtures. In your `conftest.py`:

from aiodiloco.testing.modal.fixture import loopback_modal, loopback_modal_server  # noqa: F401
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aiodiloco.testing.modal.loopback import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["loopback_modal", "loopback_modal_server"]


@pytest.fixture(scope="session")
def loopback_modal_server() -> Iterator[LoopbackModal]:
    """One control plane for all tests; override this fixture to give `LoopbackModal` other arguments."""
    with LoopbackModal() as modal:
        yield modal


@pytest.fixture
def loopback_modal(loopback_modal_server: LoopbackModal) -> Iterator[LoopbackModal]:
    """The control plane, for one test: afterwards its faults end, and the calls that it left running."""
    yield loopback_modal_server
    loopback_modal_server.reset()
