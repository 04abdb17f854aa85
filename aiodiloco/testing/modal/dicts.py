"""RPCs about dicts: values by key, both of them bytes that only the client understands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.names import find_or_create
from aiodiloco.testing.modal.records import Dict, State

if TYPE_CHECKING:
    from aiodiloco.testing.modal.dispatch import Caller

__all__ = ["DictService"]


class DictService:
    """Keeps dicts; every request is one step that no other comes between."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def dict_get_or_create(
        self, request: api_pb2.DictGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.DictGetOrCreateResponse:
        """Return a dict, created if the request says so."""
        found = find_or_create(
            self._state.dicts, "di", Dict, name=request.deployment_name, how=request.object_creation_type
        )
        return api_pb2.DictGetOrCreateResponse(dict_id=found.id, metadata=api_pb2.DictMetadata(name=found.name))

    async def dict_heartbeat(self, request: api_pb2.DictHeartbeatRequest, _caller: Caller) -> Empty:
        """Accept that somebody still uses an ephemeral dict, which stays in any case."""
        self._entries(request.dict_id)
        return Empty()

    async def dict_update(self, request: api_pb2.DictUpdateRequest, _caller: Caller) -> api_pb2.DictUpdateResponse:
        """Set entries, or only those that are not there yet; say whether all were set."""
        entries = self._entries(request.dict_id)
        fresh = [update for update in request.updates if not (request.if_not_exists and update.key in entries)]
        entries.update((update.key, update.value) for update in fresh)
        return api_pb2.DictUpdateResponse(created=len(fresh) == len(request.updates))

    async def dict_get(self, request: api_pb2.DictGetRequest, _caller: Caller) -> api_pb2.DictGetResponse:
        """Return an entry's value."""
        value = self._entries(request.dict_id).get(request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def dict_contains(
        self, request: api_pb2.DictContainsRequest, _caller: Caller
    ) -> api_pb2.DictContainsResponse:
        """Return whether there is an entry."""
        return api_pb2.DictContainsResponse(found=request.key in self._entries(request.dict_id))

    async def dict_pop(self, request: api_pb2.DictPopRequest, _caller: Caller) -> api_pb2.DictPopResponse:
        """Remove an entry, and return its value."""
        value = self._entries(request.dict_id).pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def dict_len(self, request: api_pb2.DictLenRequest, _caller: Caller) -> api_pb2.DictLenResponse:
        """Return the number of entries."""
        return api_pb2.DictLenResponse(len=len(self._entries(request.dict_id)))

    async def dict_clear(self, request: api_pb2.DictClearRequest, _caller: Caller) -> Empty:
        """Remove all entries."""
        self._entries(request.dict_id).clear()
        return Empty()

    async def dict_delete(self, request: api_pb2.DictDeleteRequest, _caller: Caller) -> Empty:
        """Forget a dict."""
        self._entries(request.dict_id)
        del self._state.dicts[request.dict_id]
        return Empty()

    def _entries(self, dict_id: str) -> dict[bytes, bytes]:
        found = self._state.dicts.get(dict_id)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"dict {dict_id!r} not found")
        return found.entries
