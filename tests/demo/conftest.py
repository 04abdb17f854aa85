"""What all tests of the demo share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A demo replica takes one thread for its whole process; the tests after this one want theirs back."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)
