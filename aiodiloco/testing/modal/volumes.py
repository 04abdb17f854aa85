"""RPCs about volumes, as clients see them: files that are there once the request that puts them has been answered."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.names import find_or_create
from aiodiloco.testing.modal.records import State, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from aiodiloco.testing.modal.blobs import BlobService
    from aiodiloco.testing.modal.dispatch import Caller
    from aiodiloco.testing.modal.mounts import MountService
    from aiodiloco.testing.modal.working_copies import WorkingCopies

__all__ = ["VolumeService"]

_BLOCK_BYTES = 8 << 20
_ENTRIES_PER_MESSAGE = 500
_File, _Directory = api_pb2.FileEntry.FILE, api_pb2.FileEntry.DIRECTORY


class VolumeService:
    """Keeps the files of every volume in memory, and publishes what containers commit."""

    def __init__(self, state: State, blobs: BlobService, mounts: MountService, copies: WorkingCopies) -> None:
        self._state = state
        self._blobs = blobs
        self._mounts = mounts
        self._copies = copies
        self._uploads: dict[bytes, str] = {}  # blob id by digest of a block

    async def volume_get_or_create(
        self, request: api_pb2.VolumeGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.VolumeGetOrCreateResponse:
        """Return a volume, created if the request says so; version 1 unless it asks for version 2."""

        def create(volume_id: str, name: str) -> Volume:
            return Volume(volume_id, name, request.version or api_pb2.VOLUME_FS_VERSION_V1)

        volume = find_or_create(
            self._state.volumes, "vo", create, name=request.deployment_name, how=request.object_creation_type
        )
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume.id, version=volume.version, metadata=volume.metadata)

    async def volume_get_by_id(
        self, request: api_pb2.VolumeGetByIdRequest, _caller: Caller
    ) -> api_pb2.VolumeGetByIdResponse:
        """Return a volume."""
        volume = self._volume(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.id, metadata=volume.metadata)

    async def volume_heartbeat(self, request: api_pb2.VolumeHeartbeatRequest, _caller: Caller) -> Empty:
        """Accept that somebody still uses an ephemeral volume, which stays in any case."""
        self._volume(request.volume_id)
        return Empty()

    async def volume_delete(self, request: api_pb2.VolumeDeleteRequest, _caller: Caller) -> Empty:
        """Forget a volume and its files."""
        del self._state.volumes[self._volume(request.volume_id).id]
        return Empty()

    async def volume_put_files(self, request: api_pb2.VolumePutFilesRequest, _caller: Caller) -> Empty:
        """Put files that were uploaded before, all or none, at once."""
        contents = {_clean(file.filename): self._mounts.read(file.sha256_hex) for file in request.files}
        _put(self._volume(request.volume_id), contents, overwrite=not request.disallow_overwrite_existing_files)
        return Empty()

    async def volume_put_files2(
        self, request: api_pb2.VolumePutFiles2Request, _caller: Caller
    ) -> api_pb2.VolumePutFiles2Response:
        """Put files, all or none, at once; or say which of their blocks are to be uploaded first."""
        volume = self._volume(request.volume_id)
        missing = list(self._missing(request))
        if missing:
            return api_pb2.VolumePutFiles2Response(missing_blocks=missing)
        contents = {_clean(file.path): self._assemble(file) for file in request.files}
        # As its definition has it, a request that would change nothing succeeds, also where it may not overwrite.
        changes = {path: data for path, data in contents.items() if volume.files.get(path) != data}
        _put(volume, changes, overwrite=not request.disallow_overwrite_existing_files)
        for file in request.files:
            for block in file.blocks:
                if (blob_id := self._uploads.pop(block.contents_sha256, None)) is not None:
                    self._blobs.forget(blob_id)
        return api_pb2.VolumePutFiles2Response()

    def _missing(
        self, request: api_pb2.VolumePutFiles2Request
    ) -> Iterator[api_pb2.VolumePutFiles2Response.MissingBlock]:
        for file_index, file in enumerate(request.files):
            for block_index, block in enumerate(file.blocks):
                blob_id = self._uploads.get(block.contents_sha256)
                if blob_id is None or not self._blobs.has(blob_id):
                    self._uploads[block.contents_sha256] = blob_id = self._blobs.reserve()
                    yield api_pb2.VolumePutFiles2Response.MissingBlock(
                        file_index=file_index, block_index=block_index, put_url=self._blobs.url(blob_id)
                    )

    def _assemble(self, file: api_pb2.VolumePutFiles2Request.File) -> bytes:
        """Return a file's bytes; its blocks come without the zeros at their end."""
        parts = []
        for index, block in enumerate(file.blocks):
            data = self._blobs.read(self._uploads[block.contents_sha256])
            if hashlib.sha256(data).digest() != block.contents_sha256:
                raise GRPCError(Status.DATA_LOSS, f"block {index} of {file.path} is not what was announced")
            parts.append(data.ljust(min(_BLOCK_BYTES, file.size - index * _BLOCK_BYTES), b"\0"))
        return b"".join(parts)

    async def volume_get_file2(
        self, request: api_pb2.VolumeGetFile2Request, _caller: Caller
    ) -> api_pb2.VolumeGetFile2Response:
        """Return where to download the blocks of a file, as it is now, whatever becomes of it meanwhile."""
        volume, path = self._volume(request.volume_id), _clean(request.path)
        data = volume.files.get(path)
        if data is None:
            raise _not_a_file(volume, path)
        start = min(request.start, len(data))
        end = len(data) if request.len == 0 else min(len(data), start + request.len)
        urls = []
        position = start
        while position < end:
            stop = min(end, (position // _BLOCK_BYTES + 1) * _BLOCK_BYTES)
            urls.append(self._blobs.offer(data[position:stop]))
            position = stop
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=len(data), start=start, len=end - start)

    async def volume_list_files(
        self, request: api_pb2.VolumeListFilesRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        """Yield files and directories, in no particular order."""
        entries = self._entries(request)
        for index in range(0, len(entries), _ENTRIES_PER_MESSAGE):
            yield api_pb2.VolumeListFilesResponse(entries=entries[index : index + _ENTRIES_PER_MESSAGE])

    async def volume_list_files2(
        self, request: api_pb2.VolumeListFiles2Request, _caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        """Yield files and directories, in no particular order."""
        entries = self._entries(request)
        for index in range(0, len(entries), _ENTRIES_PER_MESSAGE):
            yield api_pb2.VolumeListFiles2Response(entries=entries[index : index + _ENTRIES_PER_MESSAGE])

    def _entries(
        self, request: api_pb2.VolumeListFilesRequest | api_pb2.VolumeListFiles2Request
    ) -> list[api_pb2.FileEntry]:
        volume, path = self._volume(request.volume_id), _clean(request.path)
        if path in volume.files:
            return [_entry(path, len(volume.files[path]))]
        root = f"{path}/" if path else ""
        files: dict[str, int] = {}
        directories: set[str] = set()
        for name, data in volume.files.items():
            if name.startswith(root):
                parts = name[len(root) :].split("/")
                depth = len(parts) if request.recursive else 1
                directories |= {root + "/".join(parts[:number]) for number in range(1, min(depth + 1, len(parts)))}
                if len(parts) <= depth:
                    files[name] = len(data)
        if root and not files and not directories:
            raise _not_found(volume, path)
        return [_entry(name) for name in directories] + [_entry(name, size) for name, size in files.items()]

    async def volume_remove_file(self, request: api_pb2.VolumeRemoveFileRequest, _caller: Caller) -> Empty:
        """Remove a file, or a directory if the request is recursive."""
        return self._remove(request)

    async def volume_remove_file2(self, request: api_pb2.VolumeRemoveFile2Request, _caller: Caller) -> Empty:
        """Remove a file, or a directory if the request is recursive."""
        return self._remove(request)

    def _remove(self, request: api_pb2.VolumeRemoveFileRequest | api_pb2.VolumeRemoveFile2Request) -> Empty:
        volume, path = self._volume(request.volume_id), _clean(request.path)
        below = [name for name in volume.files if name.startswith(f"{path}/")]
        if path not in volume.files and not (below and request.recursive):
            raise _not_a_file(volume, path)
        for name in [path, *below]:
            volume.files.pop(name, None)
        return Empty()

    async def volume_commit(self, request: api_pb2.VolumeCommitRequest, caller: Caller) -> api_pb2.VolumeCommitResponse:
        """Publish what a container changed."""
        await self._copies.commit(caller.task_id, self._volume(request.volume_id))
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def volume_reload(self, request: api_pb2.VolumeReloadRequest, caller: Caller) -> Empty:
        """Show a container what others have committed."""
        await self._copies.reload(caller.task_id, self._volume(request.volume_id))
        return Empty()

    def _volume(self, volume_id: str) -> Volume:
        volume = self._state.volumes.get(volume_id)
        if volume is None:
            raise GRPCError(Status.NOT_FOUND, f"volume {volume_id!r} not found")
        return volume


def _put(volume: Volume, contents: Mapping[str, bytes], *, overwrite: bool) -> None:
    taken = [path for path in contents if path in volume.files]
    if taken and not overwrite:
        raise GRPCError(Status.ALREADY_EXISTS, f"{taken[0]} already exists")
    directories = {str(parent) for name in [*volume.files, *contents] for parent in PurePosixPath(name).parents}
    for path in contents:
        if path in directories:
            raise GRPCError(Status.FAILED_PRECONDITION, f"{path} is a directory")
        if any(str(parent) in volume.files for parent in PurePosixPath(path).parents):
            raise GRPCError(Status.FAILED_PRECONDITION, f"{path} would lie below a file")
    volume.files.update(contents)


def _clean(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise GRPCError(Status.INVALID_ARGUMENT, f"{path!r} leads out of the volume")
    return "/".join(parts)


def _entry(path: str, size: int | None = None) -> api_pb2.FileEntry:
    return api_pb2.FileEntry(path=path, type=_Directory if size is None else _File, size=size or 0)


def _not_a_file(volume: Volume, path: str) -> GRPCError:
    if not path or any(name.startswith(f"{path}/") for name in volume.files):
        return GRPCError(Status.INVALID_ARGUMENT, f"{path!r} is a directory")
    return _not_found(volume, path)


def _not_found(volume: Volume, path: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, f"no {path!r} in volume {volume.name or volume.id}")
