"""Named objects: looked up, or created, as a request says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.records import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_or_create"]


class _Named(Protocol):
    """Whatever has a name, empty for an ephemeral object."""

    name: str


T = TypeVar("T", bound=_Named)

_FIRST = {
    api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
    api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
    api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL,
    api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
}


def find_or_create(
    known: dict[str, T],
    prefix: str,
    create: Callable[[str, str], T],
    *,
    name: str,
    how: api_pb2.ObjectCreationType.ValueType,
) -> T:
    """Return the object of a name out of `known`, by id; or `create(new id, name)`, kept there, if `how` says so.

    Raises:
        GRPCError: there is none and none is to be created, or there is one and there must not be.
    """
    found = next((each for each in known.values() if name and each.name == name), None)
    if found is not None:
        if how in _FIRST:
            raise GRPCError(Status.ALREADY_EXISTS, f"{name!r} exists already")
        return found
    if how == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
        raise GRPCError(Status.NOT_FOUND, f"{name!r} not found")
    created_id = new_id(prefix)
    known[created_id] = create(created_id, name)
    return known[created_id]
