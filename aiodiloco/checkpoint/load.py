"""Reading a checkpoint: all of it, verified, or an error that says what is missing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.checkpoint.file import read_file
from aiodiloco.checkpoint.layout import CheckpointKeys, FileEntry, Manifest, manifests_of
from aiodiloco.checkpoint.tree import unpack_tree
from aiodiloco.codec import digest
from aiodiloco.collective.waiting import read_intact
from aiodiloco.errors import CheckpointError, ChunkError, KeyNotFoundError
from aiodiloco.store.fan_out import map_concurrently
from aiodiloco.store.worker import run_in_worker

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.store import Store

__all__ = ["Loaded", "find_manifest", "list_models", "list_rounds", "load"]

_FILES_AT_ONCE = 4
_WORKER_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a checkpoint held: see `Snapshot`, whose fields these are."""

    round: int
    inner_step: int
    outer: Any
    model: Any
    frozen: Any
    replica: Any


async def list_rounds(store: Store, model_number: int = 0) -> list[int]:
    """Return the rounds of all complete checkpoints of a model, in order."""
    prefix = manifests_of(model_number)
    found = [keys.round async for key in store.list(prefix) if (keys := CheckpointKeys.of_manifest(key))]
    return sorted(found)


async def list_models(store: Store) -> list[int]:
    """Return the numbers of the models that have a complete checkpoint, in order."""
    manifests = [CheckpointKeys.of_manifest(key) async for key in store.list(manifests_of(None))]
    return sorted({keys.model_number for keys in manifests if keys})


async def find_manifest(store: Store, number: int | None = None, model_number: int = 0) -> Manifest:
    """Return the manifest of the checkpoint after `number` rounds, or of the latest.

    Raises:
        CheckpointError: there is none; says which there are.
    """
    rounds = await list_rounds(store, model_number)
    wanted = rounds[-1] if number is None and rounds else number
    if wanted is None or wanted not in rounds:
        which = "complete checkpoint" if number is None else f"complete checkpoint of round {number}"
        have = f"there are {rounds}" if rounds else "was the run started with checkpoints, and is this its own prefix?"
        raise CheckpointError(f"no {which} under {store.uri}: {have}")
    key = CheckpointKeys(model_number, wanted).manifest

    async def read() -> Manifest:
        return Manifest.from_json(await store.get(key), f"{store.uri}/{key}")

    try:
        return await read_intact(key, read)
    except ChunkError as exc:
        raise CheckpointError(str(exc)) from exc


async def load(store: Store, manifest: Manifest, *, rank: int | None) -> Loaded:
    """Return what the checkpoint holds; with a `rank`, also what was its own, None where it saved nothing.

    Raises:
        CheckpointError: an object is missing or damaged; names it.
    """
    workers = anyio.CapacityLimiter(_WORKER_THREADS)

    async def read(entry: FileEntry) -> tuple[dict[str, Tensor], Any]:
        return await _read(store, entry, workers)

    files = await map_concurrently(read, manifest.files, limit=_FILES_AT_ONCE)
    tensors = {name: tensor for found, _ in files for name, tensor in found.items()}
    replica = None
    if rank is not None and (entries := manifest.replicas.get(rank)):
        own = await map_concurrently(read, entries, limit=_FILES_AT_ONCE)
        replica = unpack_tree(own[0][1], {name: tensor for found, _ in own for name, tensor in found.items()})
    try:
        outer, model, frozen = (unpack_tree(t, tensors) for t in (manifest.outer, manifest.model, manifest.frozen))
    except ValueError as exc:
        raise CheckpointError(f"the checkpoint of round {manifest.round} under {store.uri}: {exc}") from exc
    return Loaded(manifest.round, manifest.inner_step, outer, model, frozen, replica)


async def _read(store: Store, entry: FileEntry, workers: anyio.CapacityLimiter) -> tuple[dict[str, Tensor], Any]:
    what = f"{store.uri}/{entry.key}"

    async def read() -> tuple[dict[str, Tensor], Any]:
        data = await store.get(entry.key, length=entry.nbytes + 1)

        def parse() -> tuple[dict[str, Tensor], Any]:
            if (len(data), digest(data).hex()) != (entry.nbytes, entry.digest):
                raise ChunkError(f"{len(data)} bytes, and not those its manifest names")
            return read_file(data, what)

        return await run_in_worker(lambda _: parse(), workers)

    try:
        return await read_intact(entry.key, read)
    except KeyNotFoundError as exc:
        raise CheckpointError(f"{what} is missing, though the checkpoint's manifest names it") from exc
    except ChunkError as exc:
        raise CheckpointError(f"{what} is damaged: {exc}") from exc
