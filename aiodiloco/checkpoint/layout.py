"""Where a checkpoint lies, what its documents say, and who writes which tensors: no I/O here.

checkpoints/<model>/<round>/outer-<part>-<n>.safetensors   outer parameters and momenta, a share from each writer
checkpoints/<model>/<round>/model-<n>-<digest>.safetensors buffers, from the first writer
checkpoints/<model>/<round>/replica-<rank>-<n>-<digest>.safetensors   what is a replica's own: inner optimizer,
                                                           random state, data
checkpoints/<model>/<round>/parts/<part>.json              this writer's share is whole
checkpoints/complete/<model>/<round>.json                  its manifest: all shares are there; without it there is
                                                           no checkpoint. Apart, for these are listed often
checkpoints/frozen/<digest>.safetensors                    weights that are not trained, by content: they lie there once

A replica that comes back may write its share a second time. Outer files are then the same bytes. What is its own is
not, so those files are named by their content: a manifest never names an object that is overwritten.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Self, TypeVar

from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.errors import ChunkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aiodiloco.records import JSON
    from aiodiloco.store import Buffer

__all__ = [
    "CHECKPOINTS",
    "CheckpointKeys",
    "FileEntry",
    "Manifest",
    "Part",
    "checkpoints_of",
    "files_of",
    "frozen_key",
    "manifests_of",
    "share_out",
]

T = TypeVar("T")

CHECKPOINTS = "checkpoints/"
_COMPLETE = f"{CHECKPOINTS}complete/"
_MANIFEST = re.compile(rf"{_COMPLETE}([0-9]+)/([0-9]+)\.json")


def checkpoints_of(model_number: int) -> str:
    """Return the prefix of all checkpoints of one model of the run, but for their manifests."""
    return f"{CHECKPOINTS}{model_number:04d}/"


def manifests_of(model_number: int | None) -> str:
    """Return the prefix of the manifests of one model, or of all."""
    return _COMPLETE if model_number is None else f"{_COMPLETE}{model_number:04d}/"


@dataclasses.dataclass(frozen=True)
class CheckpointKeys:
    """The keys of the checkpoint of one model of a run taken after `round` rounds."""

    model_number: int
    round: int

    @property
    def prefix(self) -> str:
        """Prefix of all its own objects but the manifest; sorts by round."""
        return f"{checkpoints_of(self.model_number)}{self.round:08d}/"

    @property
    def manifest(self) -> str:
        """The object that makes it a checkpoint."""
        return f"{manifests_of(self.model_number)}{self.round:08d}.json"

    @property
    def parts(self) -> str:
        """Prefix of one object for each writer that is done."""
        return f"{self.prefix}parts/"

    def part(self, part: int) -> str:
        """What writer `part` wrote."""
        return f"{self.parts}{part:05d}.json"

    def outer(self, part: int, number: int) -> str:
        """One file of writer `part`."""
        return f"{self.prefix}outer-{part:05d}-{number:04d}.safetensors"

    def model(self, number: int, hexdigest: str) -> str:
        """One file, with these contents, of what the model has besides parameters."""
        return f"{self.prefix}model-{number:04d}-{hexdigest}.safetensors"

    def replica(self, rank: int, number: int, hexdigest: str) -> str:
        """One file, with these contents, of what only `rank` needs."""
        return f"{self.prefix}replica-{rank:05d}-{number:04d}-{hexdigest}.safetensors"

    @classmethod
    def of_manifest(cls, key: str) -> Self | None:
        """Return the checkpoint whose manifest `key` is, None for other keys."""
        found = _MANIFEST.fullmatch(key)
        return None if found is None else cls(int(found[1]), int(found[2]))


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One object with tensors, and what its bytes must be."""

    key: str
    nbytes: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Part:
    """What one writer wrote.

    Attributes:
        files: Its share of the outer state.
        rank: Its rank.
        replica: Its own state, the tree of it in the first file; None if it has none to keep.
    """

    files: tuple[FileEntry, ...]
    rank: int
    replica: tuple[FileEntry, ...] | None

    def to_json(self) -> bytes:
        """Return the document."""
        return seal_document(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: Buffer, what: str) -> Self:
        """Read the document called `what`. Raises ChunkError if it is none."""
        return _read(data, what, lambda fields: cls(_entries(fields["files"]), int(fields["rank"]), _own(fields)))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A whole checkpoint.

    Attributes:
        round: Rounds the outer state has taken.
        inner_step: Inner steps they consist of.
        outer: The outer state as a tree that names tensors; see `pack_tree`.
        model: What it takes to make the model's state dict of it, a tree as well.
        frozen: Another, of weights that are not trained.
        files: The objects those tensors lie in.
        replicas: Rank -> its own state.
    """

    round: int
    inner_step: int
    outer: JSON
    model: JSON
    frozen: JSON
    files: tuple[FileEntry, ...]
    replicas: Mapping[int, tuple[FileEntry, ...]]

    def to_json(self) -> bytes:
        """Return the document; the same bytes whoever writes it."""
        return seal_document({"version": 1, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, data: Buffer, what: str) -> Self:
        """Read the document called `what`. Raises ChunkError if it is none."""
        return _read(data, what, cls._from_fields)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        if fields["version"] != 1:
            raise ValueError(f"version {fields['version']} is of a newer release")
        replicas = {int(rank): _entries(entries) for rank, entries in fields["replicas"].items()}
        numbers = int(fields["round"]), int(fields["inner_step"])
        return cls(*numbers, fields["outer"], fields["model"], fields["frozen"], _entries(fields["files"]), replicas)


def frozen_key(hexdigest: str) -> str:
    """Return the key of a file with these contents."""
    return f"{CHECKPOINTS}frozen/{hexdigest}.safetensors"


def share_out(sizes: Mapping[str, int], num_parts: int) -> list[list[str]]:
    """Return for each of `num_parts` writers the tensors it writes: runs of the given order, balanced by bytes.

    Args:
        sizes: Tensor name -> bytes, in an order that all writers share.
    """
    total = max(1, sum(sizes.values()))
    shares: list[list[str]] = [[] for _ in range(num_parts)]
    before = 0
    for name, nbytes in sizes.items():
        middle = before + nbytes / 2
        shares[min(num_parts - 1, int(middle * num_parts / total))].append(name)
        before += nbytes
    return shares


def files_of(names: Sequence[str], sizes: Mapping[str, int], most_bytes: int) -> list[list[str]]:
    """Return `names` cut into runs of at most `most_bytes`; a larger tensor has a file to itself."""
    runs: list[list[str]] = []
    room = 0
    for name in names:
        if not runs or sizes[name] > room:
            runs.append([])
            room = most_bytes
        runs[-1].append(name)
        room -= sizes[name]
    return runs


def _read(data: Buffer, what: str, make: Callable[[dict[str, Any]], T]) -> T:
    try:
        return make(parse_document(data, what))
    except ChunkError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ChunkError(f"{what} is not a document of a checkpoint: {exc!r}") from exc


def _entries(items: Iterable[Mapping[str, Any]]) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(**item) for item in items)


def _own(fields: Mapping[str, Any]) -> tuple[FileEntry, ...] | None:
    return None if fields["replica"] is None else _entries(fields["replica"])
