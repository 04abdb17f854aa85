"""Writing a checkpoint: each replica its share, whoever comes last the manifest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from aiodiloco.checkpoint.file import write_file
from aiodiloco.checkpoint.layout import CheckpointKeys, FileEntry, Manifest, Part, files_of, fixed_key, share_out
from aiodiloco.checkpoint.tree import pack_tree
from aiodiloco.codec import digest
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.store.fan_out import map_concurrently
from aiodiloco.store.worker import run_in_worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anyio
    from torch import Tensor

    from aiodiloco.records import JSON
    from aiodiloco.store import Store

__all__ = ["Snapshot", "save_part"]

_MOST_FILE_BYTES = 64 << 20
_FILES_AT_ONCE = 2


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What one replica knows right after a round; must not change until it is saved.

    Attributes:
        round: Rounds taken.
        inner_step: Inner steps they consist of.
        outer: State of the outer side: the same on all replicas, to the bit.
        model: What else the model's state dict needs; the same on all replicas. Its tensors never change in training.
        replica: What is this replica's own; None if nothing is worth keeping.
    """

    round: int
    inner_step: int
    outer: object
    model: object = None
    replica: object = None


async def save_part(
    store: Store, snapshot: Snapshot, *, rank: int, part: int, num_parts: int, workers: anyio.CapacityLimiter
) -> bool:
    """Write this replica's share of a checkpoint; return True if all shares are there now, so that it is one.

    Repeating it, also after a cancellation at any point, writes the same objects again and harms nothing.

    Args:
        store: The run's own prefix.
        snapshot: What to save.
        rank: This rank.
        part: 0 .. num_parts - 1, another for each of the replicas that write this checkpoint.
        num_parts: Number of those.
        workers: Bounds the threads that serialise.

    Raises:
        TypeError: the snapshot holds something other than tensors and plain values.
        StoreError: it could not be written.
    """
    saving = _Saving(store, CheckpointKeys(snapshot.round), workers)
    outer, tensors = pack_tree(snapshot.outer, "outer")
    model, fixed = pack_tree(snapshot.model, "model")
    own, own_tensors = pack_tree(snapshot.replica, "replica")
    files = await saving.put_share(tensors, part, num_parts)
    if part == 0:
        files += await saving.put_fixed(fixed)
    entry = None if own is None else await saving.put(saving.keys.replica(rank), own_tensors, own)
    await store.put(saving.keys.part(part), Part(files, rank, entry).to_json())
    parts = await saving.read_parts(num_parts)
    if parts is None:
        return False
    replicas = {p.rank: p.replica for p in parts if p.replica is not None}
    entries = tuple(entry for p in parts for entry in p.files)
    manifest = Manifest(snapshot.round, snapshot.inner_step, outer, model, entries, replicas)
    await store.put_if_absent(saving.keys.manifest, manifest.to_json())
    return True


@dataclasses.dataclass(frozen=True)
class _Saving:
    store: Store
    keys: CheckpointKeys
    workers: anyio.CapacityLimiter

    async def put_share(self, tensors: Mapping[str, Tensor], part: int, num_parts: int) -> tuple[FileEntry, ...]:
        sizes = {name: tensors[name].nbytes for name in sorted(tensors)}
        runs = files_of(share_out(sizes, num_parts)[part], sizes, _MOST_FILE_BYTES)

        async def put(number: int) -> FileEntry:
            return await self.put(self.keys.outer(part, number), {name: tensors[name] for name in runs[number]})

        return tuple(await map_concurrently(put, range(len(runs)), limit=_FILES_AT_ONCE))

    async def put_fixed(self, tensors: Mapping[str, Tensor]) -> tuple[FileEntry, ...]:
        """Write what never changes once for the whole run: its key is its digest."""
        sizes = {name: tensors[name].nbytes for name in sorted(tensors)}

        async def put(names: list[str]) -> FileEntry:
            data, hexdigest = await self._serialise({name: tensors[name] for name in names}, None)
            entry = FileEntry(fixed_key(hexdigest), len(data), hexdigest)
            await self.store.put_if_absent(entry.key, data)
            return entry

        runs = files_of(list(sizes), sizes, _MOST_FILE_BYTES)
        return tuple(await map_concurrently(put, runs, limit=_FILES_AT_ONCE))

    async def put(self, key: str, tensors: Mapping[str, Tensor], tree: JSON = None) -> FileEntry:
        data, hexdigest = await self._serialise(tensors, tree)
        await self.store.put(key, data)
        return FileEntry(key, len(data), hexdigest)

    async def read_parts(self, num_parts: int) -> list[Part] | None:
        """Return what all writers wrote, or None while one is missing."""

        async def read(part: int) -> Part:
            key = self.keys.part(part)
            return Part.from_json(await self.store.get(key), f"{self.store.uri}/{key}")

        try:
            return await map_concurrently(read, range(num_parts))
        except KeyNotFoundError:
            return None

    async def _serialise(self, tensors: Mapping[str, Tensor], tree: JSON) -> tuple[bytes, str]:
        def serialise() -> tuple[bytes, str]:
            data = write_file(tensors, tree)
            return data, digest(data).hex()

        return await run_in_worker(lambda _: serialise(), self.workers)
