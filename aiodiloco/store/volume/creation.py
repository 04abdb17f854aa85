"""The creation of an object that only one of many writers may win, finished by others if the winner dies."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

import anyio

from aiodiloco.errors import StoreError
from aiodiloco.store.volume.batches import Upload
from aiodiloco.store.volume.claims import Claim, Claims

if TYPE_CHECKING:
    from aiodiloco.store.volume.files import VolumeFiles

__all__ = ["Creation"]

_IN_CLAIM_BYTES = 128 << 10
_STAGING = ".aiodiloco-staging"  # no key can name what is in it
_PATIENCE_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Creation:
    """One writer's attempt: claim the object, write it, and note on the claim that it is there.

    A claim names its object's bytes, or the file they were staged in, before it can win. So whoever comes later and
    finds a claim whose object does not appear writes it in the claimant's name. An object deleted later is told from
    one not written yet by the note, also when it was deleted with other tools.

    Args:
        files: Where the object shall be.
        claims: Who may create it.
        path: The object.
        data: Its bytes.
    """

    def __init__(self, files: VolumeFiles, claims: Claims, path: str, data: bytes) -> None:
        self._files = files
        self._claims = claims
        self._path = path
        self._data = data

    async def run(self) -> bool:
        """Return whether this writer created the object; if not, it exists by now."""
        if await self._files.exists(self._path):
            return False
        is_staged = len(self._data) > _IN_CLAIM_BYTES
        mine = Claim.of(None if is_staged else self._data)
        if is_staged:
            await self._files.write([Upload(_staging(mine), self._data)], overwrite=True)
        has_won = await self._compete(mine)
        if is_staged:  # if this is not reached, whoever finishes the creation needs it
            await self._files.remove(_staging(mine))
        return has_won

    async def _compete(self, mine: Claim) -> bool:
        generation = 0
        while True:
            claim = await self._claims.make(self._path, generation, mine)
            if claim.token == mine.token:
                await self._finish(generation, mine, self._data)
                return True
            if not claim.is_settled:
                await self._see_through(generation, claim)
            if await self._files.exists(self._path):
                return False
            generation = max(generation + 1, claim.successor)

    async def _see_through(self, generation: int, claim: Claim) -> None:
        """Wait until another writer's object is there; write it if that takes too long."""
        latest = time.monotonic() + _PATIENCE_S * random.uniform(1, 2)  # noqa: S311 - so that not all begin at once
        pause_s = _FIRST_PAUSE_S
        while time.monotonic() < latest:
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if await self._files.exists(self._path):
                return
            now = await self._claims.get(self._path, generation)
            if now is None or now.is_settled:
                return
        await self._finish(generation, claim, await self._data_of(claim))

    async def _data_of(self, claim: Claim) -> bytes:
        if claim.data is not None:
            return claim.data
        try:
            return bytes(await self._files.read(_staging(claim), 0, None, None))
        except FileNotFoundError as exc:
            raise StoreError(
                f"{self._path} was claimed by a writer that died, and the bytes it staged are gone: delete the object"
            ) from exc

    async def _finish(self, generation: int, claim: Claim, data: bytes) -> None:
        # If it exists, another writer was quicker to finish this creation, or has put something else since.
        with contextlib.suppress(FileExistsError):
            await self._files.write([Upload(self._path, data)], overwrite=False)
        await self._claims.settle(self._path, generation, claim)


def _staging(claim: Claim) -> str:
    return f"{_STAGING}/{claim.token}"
