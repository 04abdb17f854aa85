from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import pytest

from aiodiloco.executors.modal import ModalExecutor
from aiodiloco.testing.modal import LoopbackModal

from .every import EveryEntrypoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import modal

_PRELOAD = ["aiodiloco.executors.modal.replica", "aiodiloco.testing.entrypoints"]
_GRACE_S = 0.1  # the suite counts on ends within a third of a second, also of containers that are just starting


@pytest.fixture(scope="session")
def session_plane() -> Iterator[LoopbackModal]:
    with LoopbackModal(preload=_PRELOAD, max_containers=1000) as plane:
        yield plane


@pytest.fixture(scope="session")
def session_client(session_plane: LoopbackModal) -> modal.Client:
    return anyio.run(session_plane.client)


@pytest.fixture
def plane(session_plane: LoopbackModal) -> Iterator[LoopbackModal]:
    """A control plane for all tests, without faults at the start of each."""
    yield session_plane
    session_plane.faults.clear()


@pytest.fixture
async def client(plane: LoopbackModal) -> AsyncIterator[modal.Client]:
    """A connection of the test's own, which may be left with requests that hang."""
    client = await plane.client()
    yield client
    await client.close.aio()


@pytest.fixture
def leftovers(plane: LoopbackModal) -> Callable[[], list[str]]:
    """Calls that have not ended; those that are being killed have a moment for it."""

    def find() -> list[str]:
        latest = time.monotonic() + 2.0
        while True:
            living = [f"{call.id} {call.state}: {call.kwargs}" for call in plane.calls() if call.is_alive]
            if not living or time.monotonic() > latest:
                return living
            time.sleep(0.01)

    return find


@pytest.fixture(scope="session")
def spawner(session_client: modal.Client) -> Iterator[EveryEntrypoint]:
    every = EveryEntrypoint(session_client, grace=_GRACE_S)
    with every.app.run(client=session_client):
        yield every


@pytest.fixture(scope="session")
def modal_executor(session_client: modal.Client) -> Iterator[ModalExecutor]:
    executor = ModalExecutor(client=session_client, grace=_GRACE_S)
    yield executor
    anyio.run(executor.close)
