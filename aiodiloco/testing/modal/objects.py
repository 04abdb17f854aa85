"""RPCs about what a function needs besides its files: its image, its secrets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.apps import IMAGE_BUILDER_VERSION
from aiodiloco.testing.modal.records import State, new_id

if TYPE_CHECKING:
    from aiodiloco.testing.modal.dispatch import Caller

__all__ = ["ObjectService"]


class ObjectService:
    """Every image is this machine as it is; secrets are kept."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def image_get_or_create(
        self, _request: api_pb2.ImageGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.ImageGetOrCreateResponse:
        """Say that the image is built."""
        version = sys.version_info
        return api_pb2.ImageGetOrCreateResponse(
            image_id=new_id("im"),
            result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(
                python_version_info=f"Python {version.major}.{version.minor}.{version.micro}",
                image_builder_version=IMAGE_BUILDER_VERSION,
                workdir="/root",
            ),
        )

    async def secret_get_or_create(
        self, request: api_pb2.SecretGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.SecretGetOrCreateResponse:
        """Return a secret's id, and keep its values if it is new."""
        name = request.deployment_name
        secret_id = self._state.secret_names.get(name) if name else None
        if secret_id is None:
            if name and request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"secret {name!r} not found")
            secret_id = new_id("st")
            self._state.secrets[secret_id] = dict(request.env_dict)
            if name:
                self._state.secret_names[name] = secret_id
        missing = [key for key in request.required_keys if key not in self._state.secrets[secret_id]]
        if missing:
            raise GRPCError(Status.NOT_FOUND, f"secret {name!r} lacks {', '.join(missing)}")
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=api_pb2.SecretMetadata(name=name))
