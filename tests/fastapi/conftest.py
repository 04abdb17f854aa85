from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service for tests that leave it as it was."""
    with Server(tmp_path_factory.mktemp("service")) as server:
        yield server
        server.terminate()


@pytest.fixture(scope="module")
def finished(server: Server) -> str:
    """A run that is over: two replicas, 20 steps each."""
    run_id = server.launch("count", n_replicas=2)
    assert server.read(f"/runs/{run_id}/events")[-1].kind == "end"
    return run_id
