"""Writing a checkpoint: each replica its share, whoever comes last the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from aiodiloco.checkpoint.file import write_file
from aiodiloco.checkpoint.layout import CheckpointKeys, FileEntry, Manifest, Part, files_of, frozen_key, share_out
from aiodiloco.checkpoint.tree import pack_tree
from aiodiloco.codec import digest
from aiodiloco.collective.waiting import read_intact
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.store.fan_out import map_concurrently
from aiodiloco.store.worker import run_in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import anyio
    from torch import Tensor

    from aiodiloco.records import JSON
    from aiodiloco.store import Store

__all__ = ["Share", "Snapshot", "check_snapshot", "save_share", "take_share"]

_MOST_FILE_BYTES = 64 << 20
_FILES_AT_ONCE = 2


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What one replica knows right after a round.

    Attributes:
        model_number: Which of the run's models, from 0.
        round: Rounds taken.
        inner_step: Inner steps they consist of.
        outer: State of the outer side: the same on all replicas, to the bit.
        model: What else the model's state dict needs; the first writer's is kept.
        frozen: What of that never changes: written once for all checkpoints of the run.
        replica: What is this replica's own; None if nothing is worth keeping.
    """

    model_number: int
    round: int
    inner_step: int
    outer: object
    model: object = None
    frozen: object = None
    replica: object = None


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of `num_parts` writers will write of a snapshot: copies, so that training may go on."""

    keys: CheckpointKeys
    inner_step: int
    part: int
    num_parts: int
    rank: int
    outer: JSON
    model: JSON
    frozen: JSON
    replica: JSON
    outer_tensors: Mapping[str, Tensor]
    model_tensors: Mapping[str, Tensor]
    frozen_tensors: Mapping[str, Tensor]
    replica_tensors: Mapping[str, Tensor]

    @property
    def round(self) -> int:
        """Rounds the snapshot has taken."""
        return self.keys.round


def check_snapshot(snapshot: Snapshot) -> None:
    """Raise TypeError, saying where, if a snapshot holds something that a checkpoint cannot. Copies nothing."""
    for part in ("outer", "model", "frozen", "replica"):
        pack_tree(getattr(snapshot, part), part)


def take_share(snapshot: Snapshot, *, rank: int, part: int, num_parts: int) -> Share:
    """Copy what this replica has to write of a snapshot; blocks for as long as copying takes.

    Args:
        snapshot: Its tensors may change when this has returned.
        rank: This rank.
        part: 0 .. num_parts - 1, another for each of the replicas that write this checkpoint.
        num_parts: Number of those.

    Raises:
        TypeError: the snapshot holds something other than tensors and plain values.
    """
    outer, tensors = pack_tree(snapshot.outer, "outer")
    model, model_tensors = pack_tree(snapshot.model, "model")
    frozen, frozen_tensors = pack_tree(snapshot.frozen, "frozen")
    replica, replica_tensors = pack_tree(snapshot.replica, "replica")
    sizes = {name: tensors[name].nbytes for name in sorted(tensors)}
    mine = {name: tensors[name] for name in share_out(sizes, num_parts)[part]}
    return Share(
        keys=CheckpointKeys(snapshot.model_number, snapshot.round),
        inner_step=snapshot.inner_step,
        part=part,
        num_parts=num_parts,
        rank=rank,
        outer=outer,
        model=model,
        frozen=frozen,
        replica=replica,
        outer_tensors=_copies(mine),
        model_tensors=_copies(model_tensors if part == 0 else {}),
        frozen_tensors=frozen_tensors if part == 0 else {},
        replica_tensors=_copies(replica_tensors),
    )


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


async def save_share(store: Store, share: Share, workers: anyio.CapacityLimiter) -> bool:
    """Write this replica's share of a checkpoint; return True if all shares are there now, so that it is one.

    Repeating it, also after a cancellation at any point, writes the same objects again and harms nothing.

    Args:
        store: The run's own prefix.
        share: From `take_share`.
        workers: Bounds the threads that serialise.

    Raises:
        StoreError: it could not be written.
    """
    saving, keys = _Saving(store, workers), share.keys
    files = await saving.put_all(share.outer_tensors, lambda number, _: keys.outer(share.part, number))
    files += await saving.put_all(share.model_tensors, keys.model)
    files += await saving.put_all(share.frozen_tensors, lambda _, hexdigest: frozen_key(hexdigest))
    own = None
    if share.replica is not None:
        own = await saving.put_all(
            share.replica_tensors,
            lambda number, hexdigest: keys.replica(share.rank, number, hexdigest),
            share.replica,
        )
    await store.put(keys.part(share.part), Part(files, share.rank, own).to_json())
    parts = await saving.read_parts(keys, share.num_parts)
    if parts is None:
        return False
    replicas = {part.rank: part.replica for part in parts if part.replica is not None}
    entries = tuple(entry for part in parts for entry in part.files)
    manifest = Manifest(keys.round, share.inner_step, share.outer, share.model, share.frozen, entries, replicas)
    await store.put_if_absent(keys.manifest, manifest.to_json())
    return True


@dataclasses.dataclass(frozen=True)
class _Saving:
    store: Store
    workers: anyio.CapacityLimiter

    async def put_all(
        self, tensors: Mapping[str, Tensor], key_of: Callable[[int, str], str], tree: JSON = None
    ) -> tuple[FileEntry, ...]:
        """Write tensors as files of bounded size, under keys made of their number and digest.

        A `tree` goes into the header of the first, which is then there also without tensors.
        """
        sizes = {name: tensors[name].nbytes for name in sorted(tensors)}
        runs = files_of(list(sizes), sizes, _MOST_FILE_BYTES) or ([[]] if tree is not None else [])

        async def put(number: int) -> FileEntry:
            chosen = {name: tensors[name] for name in runs[number]}
            return await self.put(lambda hexdigest: key_of(number, hexdigest), chosen, None if number else tree)

        return tuple(await map_concurrently(put, range(len(runs)), limit=_FILES_AT_ONCE))

    async def put(self, key_of: Callable[[str], str], tensors: Mapping[str, Tensor], tree: JSON) -> FileEntry:
        """Write one file. Under a key made of its digest it need not be written twice, nor sent if it is there."""

        def serialise() -> tuple[bytes, str]:
            data = write_file(tensors, tree)
            return data, digest(data).hex()

        data, hexdigest = await run_in_worker(lambda _: serialise(), self.workers)
        key = key_of(hexdigest)
        if hexdigest not in key:
            await self.store.put(key, data)
        elif key != frozen_key(hexdigest) or not await self._has(key):
            await self.store.put_if_absent(key, data)
        return FileEntry(key, len(data), hexdigest)

    async def _has(self, key: str) -> bool:
        with contextlib.suppress(KeyNotFoundError):
            await self.store.get(key, length=0)
            return True
        return False

    async def read_parts(self, keys: CheckpointKeys, num_parts: int) -> list[Part] | None:
        """Return what all writers wrote, or None while one is missing.

        One listing tells that; each of a thousand writers looks, and only the last must read what they all wrote.
        """
        if len([key async for key in self.store.list(keys.parts)]) < num_parts:
            return None

        async def read(part: int) -> Part:
            key = keys.part(part)

            async def once() -> Part:
                return Part.from_json(await self.store.get(key), f"{self.store.uri}/{key}")

            return await read_intact(key, once)

        try:
            return await map_concurrently(read, range(num_parts))
        except KeyNotFoundError:
            return None
