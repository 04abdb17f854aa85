"""A Modal Volume as a store."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Self

import anyio
import modal

from aiodiloco.errors import KeyNotFoundError, StoreAccessError
from aiodiloco.store.base import Buffer, check_key, check_prefix, check_range, is_component
from aiodiloco.store.volume.batches import Batches, Upload
from aiodiloco.store.volume.claims import Claims
from aiodiloco.store.volume.creation import Creation
from aiodiloco.store.volume.errors import RefusedError, asking
from aiodiloco.store.volume.files import VolumeFiles
from aiodiloco.store.volume.location import VolumeLocation, check_volume_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

__all__ = ["VolumeStore"]

_ID = re.compile(r"vo-[A-Za-z0-9]{22}")
_NUM_READS = 32


class VolumeStore:
    """Objects as files of a Modal Volume, written and read through Modal's client, in containers and outside.

    Of many writers that create one object the first to enter a `modal.Dict` wins; the Dict is made on first use and is
    called `aiodiloco-<id of the Volume>`. Values of a Dict are unpickled by whoever reads them: whoever may write to
    your workspace may run code in your replicas.

    A write costs a commit of the Volume, shared by all writes that wait at the same time; a creation costs two or three
    and some requests more; a range of an object costs as much as all before it. Delete an object only when nobody is
    creating it: either may then come last. A writer killed while it creates an object of more than 128 KiB can leave a
    file below `.aiodiloco-staging/`.

    Args:
        name: The Volume's name, in the environment that is active, or its id.
        prefix: Put before every key, with a slash between.
        client: Modal's client; None: the one that the environment configures.
        timeout_s: After how many seconds a request is given up; a read, after how many without a byte; a write has a
            second more for each MiB.
    """

    def __init__(
        self, name: str, prefix: str = "", *, client: modal.Client | None = None, timeout_s: float = 120.0
    ) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, not {timeout_s!r}")
        self._location = VolumeLocation(check_volume_name(name), check_key(prefix) if prefix else "")
        self._root = f"{prefix}/" if prefix else ""
        self._client = client
        self._timeout_s = timeout_s
        self._opened: _Opened | None = None

    @property
    def uri(self) -> str:
        """`modal-volume://name/prefix`."""
        return self._location.uri

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object; see `Store.get`."""
        check_range(start, length)
        path, opened = self._root + check_key(key), self._open()
        if into is not None:
            length = into.nbytes if length is None else min(length, into.nbytes)
        missing = KeyNotFoundError(f"no object {key!r} in {self.uri}")
        async with opened.gate:
            try:
                return await opened.files.read(path, start, length, into)
            except FileNotFoundError:
                raise missing from None
            except RefusedError:  # a directory; or Modal has another reason
                if await opened.files.exists(path):
                    raise
                raise missing from None

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`. All that are waiting to be written go out in one request."""
        opened = self._open()
        await opened.puts.put(self._root + check_key(key), await opened.files.own(data))

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        path, opened = self._root + check_key(key), self._open()
        return await Creation(opened.files, opened.claims, path, await opened.files.own(data)).run()

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`. Modal lists whole directories, so this does as well."""
        check_prefix(prefix)
        whole = self._root + prefix
        opened = self._open()
        async with opened.gate:
            paths = await opened.files.files_below(whole[: whole.rfind("/") + 1])
        keys = (path[len(self._root) :] for path in paths if path.startswith(whole))
        for key in sorted(key for key in keys if key > start_after and _is_key(key)):
            yield key

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        path, opened = self._root + check_key(key), self._open()
        async with opened.gate:
            claimed = await opened.claims.latest(path)
            if claimed is not None and not claimed[1].is_settled:  # its claimant died, or is just about to settle it
                await opened.claims.settle(path, *claimed)
            await opened.files.remove(path)

    async def __aenter__(self) -> Self:
        """Look the Volume up.

        Raises:
            RuntimeError: asyncio does not run this task; Modal's client needs it.
            StoreAccessError: there is no such Volume, or no access to it.
        """
        _require_asyncio()
        by_id = _ID.fullmatch(self._location.name)
        look_up = modal.Volume.from_id if by_id else modal.Volume.from_name
        volume = look_up(self._location.name, client=self._client)
        try:
            with asking(f"opening {self.uri}", timeout_s=self._timeout_s):
                await volume.hydrate.aio()
        except FileNotFoundError as exc:
            raise StoreAccessError(
                f"{self.uri}: Modal knows no Volume {self._location.name!r} here ({exc}); create it with "
                f"`modal volume create {self._location.name}`, or check MODAL_ENVIRONMENT and the workspace"
            ) from exc
        # Named after the id: a Volume that is deleted and made again under its name starts without claims.
        entries = modal.Dict.from_name(f"aiodiloco-{volume.object_id}", create_if_missing=True, client=self._client)
        files = VolumeFiles(volume, self._location.name, self._timeout_s)
        self._opened = _Opened(files, Claims(entries, self._location.name, self._timeout_s))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._opened = None

    def _open(self) -> _Opened:
        if self._opened is None:
            raise RuntimeError(f"{self.uri} is not open: use `async with store:`")
        if asyncio.get_running_loop() is not self._opened.loop:
            raise RuntimeError(f"{self.uri} was opened in another event loop: open a store in each")
        return self._opened


class _Opened:
    """What an open store works with, on the event loop that opened it."""

    def __init__(self, files: VolumeFiles, claims: Claims) -> None:
        self.files = files
        self.claims = claims
        self.loop = asyncio.get_running_loop()
        self.gate = anyio.CapacityLimiter(_NUM_READS)
        self.puts = Batches(self._overwrite)

    async def _overwrite(self, uploads: Sequence[Upload]) -> None:
        await self.files.write(uploads, overwrite=True)


def _is_key(key: str) -> bool:
    return all(is_component(part) for part in key.split("/"))


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as exc:
        raise RuntimeError(
            "Modal's client runs on asyncio only: use asyncio.run or anyio.run's asyncio backend"
        ) from exc
