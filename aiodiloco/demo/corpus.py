"""Real text that every machine has: the source of Python's own standard library, as bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["VOCAB_SIZE", "Corpus", "find_corpus", "sample"]

VOCAB_SIZE = 256
"""A token is a byte."""

_HELD_OUT_OF_256 = 26  # about a tenth of the files
_MIN_FILES = 200  # a complete library has some 400 that count; a stripped one a few dozen

# Installed packages are no part of the library; the rest is tests, tables, and what some distributions leave out.
_SKIPPED = frozenset(
    (
        *("site-packages", "dist-packages", "__pycache__", "lib-dynload"),
        *("test", "tests", "idlelib", "lib2to3", "distutils", "ensurepip", "turtledemo"),
        *("encodings", "pydoc_data"),
    )
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Files to train on and files held out, in an order that only their names decide.

    Attributes:
        root: The directory of the standard library.
        train: Files to train on, relative to `root`.
        held_out: Files no replica trains on, about a tenth, relative to `root`.
    """

    root: Path
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]

    def shard(self, rank: int, world_size: int) -> tuple[Path, ...]:
        """Return this rank's files to train on; the shards of all ranks are disjoint and leave no file out."""
        return self.train[rank::world_size]

    def text(self, files: Iterable[Path]) -> Tensor:
        """Return the bytes of `files`, one after the other, as a (num_bytes,) uint8 tensor."""
        return torch.frombuffer(bytearray(b"".join((self.root / f).read_bytes() for f in files)), dtype=torch.uint8)


def find_corpus(root: Path | None = None) -> Corpus:
    """Return the corpus of the standard library in `root`; None is this interpreter's.

    Raises:
        FileNotFoundError: fewer files than a complete library has.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    files = [path for path in files if not _is_skipped(path)]
    if len(files) < _MIN_FILES:
        raise FileNotFoundError(
            f"{root} holds {len(files)} source files of Python's standard library, and the demo needs {_MIN_FILES} to "
            "train on; use a Python that was installed with its source (Debian and Ubuntu: apt install python3-full)"
        )
    files.sort(key=_name_hash)  # so that neighbours have nothing to do with each other, and any slice is a fair sample
    return Corpus(
        root,
        train=tuple(path for path in files if not _is_held_out(path)),
        held_out=tuple(path for path in files if _is_held_out(path)),
    )


def sample(text: Tensor, *, batch_size: int, context: int, draw: str) -> tuple[Tensor, Tensor]:
    """Return random windows of `text` and, for each position, the byte that follows.

    Args:
        text: (num_bytes,) uint8, longer than `context`.
        batch_size: Number of windows.
        context: Bytes in a window.
        draw: Name of the draw, e.g. `"seed 0, rank 2, step 17"`. The same name gives the same windows: a run that is
            resumed sees what it would have seen.

    Returns:
        Inputs and targets, both (batch_size, context) int64.
    """
    seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "big", signed=True)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - context, (batch_size, 1), generator=generator)
    windows = text[starts + torch.arange(context + 1)].long()  # (batch_size, context + 1)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _is_skipped(path: Path) -> bool:
    return any(part in _SKIPPED or part.startswith("config-") for part in path.parts[:-1])


def _name_hash(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode()).digest()


def _is_held_out(path: Path) -> bool:
    return _name_hash(path)[-1] < _HELD_OUT_OF_256
