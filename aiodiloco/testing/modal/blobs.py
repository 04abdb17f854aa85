"""Blobs: arguments and results that are too big for a message, over HTTP."""

from __future__ import annotations

import hashlib
import io
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from aiohttp import web
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from aiodiloco.testing.modal.records import new_id

if TYPE_CHECKING:
    from aiodiloco.testing.modal.dispatch import Caller

__all__ = ["BlobService"]

_LARGEST = 1 << 30
_OFFER_S = 60.0


class BlobService:
    """Keeps blobs in memory, and serves them over HTTP."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._offers: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # with the time until which each holds
        self._runner: web.AppRunner | None = None
        self._url = ""

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        app = web.Application(client_max_size=_LARGEST)
        app.router.add_put("/{blob}", self._put)
        app.router.add_get("/{blob}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self._url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    def read(self, blob_id: str) -> bytes:
        """Return a blob.

        Raises:
            GRPCError: there is none.
        """
        if blob_id not in self._blobs:
            raise GRPCError(Status.NOT_FOUND, f"blob {blob_id!r} not found")
        return self._blobs[blob_id]

    def has(self, blob_id: str) -> bool:
        """Return whether a blob was uploaded."""
        return blob_id in self._blobs

    def reserve(self) -> str:
        """Return the id of a blob to be uploaded."""
        return new_id("bl")

    def url(self, blob_id: str) -> str:
        """Return where a blob is uploaded to and downloaded from."""
        return f"{self._url}/{blob_id}"

    def forget(self, blob_id: str) -> None:
        """Remove a blob."""
        self._blobs.pop(blob_id, None)

    def offer(self, data: bytes) -> str:
        """Return where `data` can be downloaded from for the next minute."""
        now = time.monotonic()
        while self._offers and next(iter(self._offers.values()))[0] < now:
            self._offers.popitem(last=False)
        blob_id = self.reserve()
        self._offers[blob_id] = (now + _OFFER_S, data)
        return self.url(blob_id)

    async def blob_create(self, _request: api_pb2.BlobCreateRequest, _caller: Caller) -> api_pb2.BlobCreateResponse:
        """Return an address to upload to, in one part whatever the size."""
        blob_id = self.reserve()
        return api_pb2.BlobCreateResponse(
            blob_id=blob_id, blob_ids=[blob_id], upload_urls=api_pb2.UploadUrlList(items=[self.url(blob_id)])
        )

    async def blob_get(self, request: api_pb2.BlobGetRequest, _caller: Caller) -> api_pb2.BlobGetResponse:
        """Return the address to download from."""
        self.read(request.blob_id)
        return api_pb2.BlobGetResponse(download_url=self.url(request.blob_id))

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._blobs[request.match_info["blob"]] = body
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return web.Response(headers={"ETag": f'"{digest}"'})

    async def _get(self, request: web.Request) -> web.Response:
        blob_id = request.match_info["blob"]
        body = self._offers[blob_id][1] if blob_id in self._offers else self._blobs.get(blob_id)
        return web.Response(status=404) if body is None else web.Response(body=io.BytesIO(body))
