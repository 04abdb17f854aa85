"""Mounts: the client's files, uploaded by content, laid out as containers see them."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import anyio.to_thread
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiodiloco.testing.modal.blobs import BlobService
    from aiodiloco.testing.modal.dispatch import Caller

__all__ = ["MountService"]

_IMPORT_ROOT = "root"  # containers import from /root


class MountService:
    """Keeps files by their digest, and every mount as a directory of its own below `directory`."""

    def __init__(self, directory: Path, blobs: BlobService) -> None:
        self._directory = directory
        self._blobs = blobs
        self._uploads = Uploads()

    def import_path(self, mount_ids: Iterable[str]) -> list[str]:
        """Return the directories in which a container with these mounts looks for modules first."""
        roots = (self._directory / mount_id / _IMPORT_ROOT for mount_id in sorted(mount_ids))
        return [str(root) for root in roots if root.is_dir()]

    def read(self, sha256_hex: str) -> bytes:
        """Return a file that was uploaded.

        Raises:
            GRPCError: there is none of this digest.
        """
        data = self._uploads.get(sha256_hex)
        if data is None:
            raise GRPCError(Status.FAILED_PRECONDITION, f"no file of SHA-256 {sha256_hex} was uploaded")
        return data

    async def mount_batched_check_existence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, _caller: Caller
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        """Return which files are still to be uploaded."""
        missing = [digest for digest in request.sha256_hex_hashes if self._uploads.get(digest) is None]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def mount_put_file(
        self, request: api_pb2.MountPutFileRequest, _caller: Caller
    ) -> api_pb2.MountPutFileResponse:
        """Take a file; without data, say whether it is there."""
        if request.data_blob_id and self._uploads.get(request.sha256_hex) is None:  # it may be sent again
            self._uploads.add(request.sha256_hex, self._blobs.read(request.data_blob_id))
            self._blobs.forget(request.data_blob_id)
        elif request.HasField("data"):
            self._uploads.add(request.sha256_hex, request.data)
        return api_pb2.MountPutFileResponse(exists=self._uploads.get(request.sha256_hex) is not None)

    async def mount_get_or_create(
        self, request: api_pb2.MountGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.MountGetOrCreateResponse:
        """Return a mount of these files; a mount that is only named, such as the client's own, is empty here."""
        digest, contents = hashlib.sha256(), dict[str, bytes]()
        for file in sorted(request.files, key=lambda file: file.filename):
            contents[file.sha256_hex] = self.read(file.sha256_hex)
            digest.update(f"{file.filename}\0{file.sha256_hex}\0{file.mode}\0".encode())
        mount_id = f"mo-{digest.hexdigest()[:22]}"
        await anyio.to_thread.run_sync(self._lay_out, mount_id, list(request.files), contents)
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id,
            handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=digest.hexdigest()),
        )

    def _lay_out(self, mount_id: str, files: list[api_pb2.MountFile], contents: Mapping[str, bytes]) -> None:
        for file in files:
            relative = PurePosixPath(file.filename).relative_to("/")
            if ".." in relative.parts:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{file.filename} leads out of its mount")
            path = self._directory / mount_id / relative
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents[file.sha256_hex])
                path.chmod(file.mode & 0o777 or 0o644)
