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
from aiodiloco.testing.modal.uploads import Uploads

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
        self._blocks = Uploads()
        self._expected: dict[str, str] = {}  # blob id by digest of a block that a client was told to upload

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
        # As its definition has it, a request that would change nothing succeeds, also where it may not overwrite.
        changes = [(index, file) for index, file in enumerate(request.files) if not _is_there(volume, file)]
        missing = [block for index, file in changes for block in self._missing(index, file)]
        if missing:
            return api_pb2.VolumePutFiles2Response(missing_blocks=missing)
        contents = {_clean(file.path): self._assemble(file) for _, file in changes}
        _put(volume, contents, overwrite=not request.disallow_overwrite_existing_files)
        return api_pb2.VolumePutFiles2Response()

    def _missing(
        self, file_index: int, file: api_pb2.VolumePutFiles2Request.File
    ) -> Iterator[api_pb2.VolumePutFiles2Response.MissingBlock]:
        for block_index, block in enumerate(file.blocks):
            digest = block.contents_sha256.hex()
            if self._block(digest) is None:
                yield api_pb2.VolumePutFiles2Response.MissingBlock(
                    file_index=file_index,
                    block_index=block_index,
                    put_url=self._blobs.url(self._expected.setdefault(digest, self._blobs.reserve())),
                )

    def _block(self, digest: str) -> bytes | None:
        blob_id = self._expected.get(digest, "")
        if self._blobs.has(blob_id):
            data = self._blobs.read(blob_id)
            self._blobs.forget(blob_id)
            del self._expected[digest]
            if hashlib.sha256(data).hexdigest() != digest:
                raise GRPCError(Status.DATA_LOSS, f"block {digest} is not what was announced")
            self._blocks.add(digest, data)
        return self._blocks.get(digest)

    def _assemble(self, file: api_pb2.VolumePutFiles2Request.File) -> bytes:
        """Return a file's bytes; its blocks, none of them missing, come without the zeros at their end."""
        parts = []
        for index, block in enumerate(file.blocks):
            data = self._block(block.contents_sha256.hex())
            assert data is not None
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


def _is_there(volume: Volume, file: api_pb2.VolumePutFiles2Request.File) -> bool:
    """Return whether the volume has just this file."""
    data = volume.files.get(_clean(file.path))
    if data is None or len(data) != file.size:
        return False
    starts = range(0, len(data), _BLOCK_BYTES)
    digests = (hashlib.sha256(data[start : start + _BLOCK_BYTES].rstrip(b"\0")).digest() for start in starts)
    return all(digest == block.contents_sha256 for digest, block in zip(digests, file.blocks, strict=True))


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
