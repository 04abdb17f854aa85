"""The inside of Modal's client: its own classes and event loop, which the public ones wrap.

No part of its public interface: whoever asks for them here gets None where a version of the client has others.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import modal

if TYPE_CHECKING:
    import asyncio

__all__ = ["Inside", "unwrapped"]


class Inside:
    """Makes calls of functions that are used in the event loop of Modal's client.

    They are what `modal.FunctionCall` wraps, with the same methods, as plain coroutines. A public one is slower: it
    loads itself, crosses to the thread of the client and back for each request, and tidies up every traceback, all of
    which takes as long as the request itself.
    """

    def __init__(self) -> None:
        self._function_call = unwrapped(modal.FunctionCall)
        self._client = unwrapped(modal.Client)
        self._synchronizer = _synchronizer()
        self._function_call._new_hydrated("fc-0", None, None)
        assert callable(self._synchronizer._get_loop)
        assert callable(self._client.from_env)
        assert "timeout" in inspect.signature(self._function_call.get).parameters
        assert "terminate_containers" in inspect.signature(self._function_call.cancel).parameters

    @classmethod
    def if_known(cls) -> Inside | None:
        """Return one, or None if it is not as expected."""
        try:
            return cls()
        except Exception:  # noqa: BLE001 - whatever it is, the public way does the same
            return None

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of Modal's client, which runs in a thread of its own."""
        loop: asyncio.AbstractEventLoop = self._synchronizer._get_loop(start=True)
        return loop

    async def call(self, call_id: str, client: modal.Client | None) -> Any:  # noqa: ANN401 - of a private class
        """Return the call with this id; `client` None: that of the environment. No request."""
        own = unwrapped(client) if client is not None else await self._client.from_env()
        return self._function_call._new_hydrated(call_id, own, None)


def unwrapped(wrapper: object) -> Any:  # noqa: ANN401 - of a private class
    """Return the object or the class that a public one of Modal's stands for."""
    return _synchronizer()._translate_in(wrapper)


def _synchronizer() -> Any:  # noqa: ANN401 - of a package that is not ours
    from modal._utils.async_utils import synchronizer

    return synchronizer
