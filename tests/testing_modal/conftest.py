from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio
import modal
import pytest

from aiodiloco.testing.modal.fixture import loopback_modal, loopback_modal_server
from tests.testing_modal.functions import app

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiodiloco.testing.modal import LoopbackModal

__all__ = ["loopback_modal", "loopback_modal_server"]


class Lookup(Protocol):
    def __call__(self, name: str) -> Any: ...


@pytest.fixture(scope="session")
def client(loopback_modal_server: LoopbackModal) -> modal.Client:
    return anyio.run(loopback_modal_server.client)


@pytest.fixture(scope="session")
def deployed(client: modal.Client) -> str:
    """The name under which the tests' app is deployed."""

    async def deploy() -> None:
        await app.deploy.aio(name="loopback-tests", client=client)

    anyio.run(deploy)
    return "loopback-tests"


@pytest.fixture
def lookup(loopback_modal: LoopbackModal, client: modal.Client, deployed: str) -> Lookup:
    """Look a deployed function up, as a program that did not define it does."""
    return lambda name: modal.Function.from_name(deployed, name, client=client)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Any]:
    """Wait until a condition holds, at most ten seconds."""

    async def wait(holds: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not holds():  # noqa: ASYNC110
                await anyio.sleep(0.01)  # another process's doing: no event tells of it

    return wait
