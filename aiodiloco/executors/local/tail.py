"""Read the last lines of a growing file, and the new ones as they come."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LineReader", "start_of_last_lines"]

_BLOCK_BYTES = 1 << 16


class LineReader:
    """Reads a file's lines from a position on, as far as it has been written.

    Lines are decoded as UTF-8; bytes that are not show as backslash escapes.
    """

    def __init__(self, path: Path, *, n_lines: int) -> None:
        self._path = path
        self._position = start_of_last_lines(path, n_lines)
        self._rest = b""

    def read(self) -> list[str]:
        """Return the complete lines written since the last call, at most about 1 MiB of them."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read(1 << 20)
        except FileNotFoundError:
            return []
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_decode(line) for line in lines]

    def rest(self) -> list[str]:
        """Return what follows the last line end, if anything."""
        return [_decode(self._rest)] if self._rest else []


def _decode(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", errors="backslashreplace")


def start_of_last_lines(path: Path, n_lines: int) -> int:
    """Return where the last `n_lines` lines of the file start, reading no more of it than those lines.

    An unfinished last line counts as one. 0 if there are fewer, the file's size for `n_lines=0`.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if n_lines == 0:
                return size
            return _search_backwards(file.fileno(), size, n_lines)
    except FileNotFoundError:
        return 0


def _search_backwards(descriptor: int, size: int, n_lines: int) -> int:
    end = size - 1 if size and os.pread(descriptor, 1, size - 1) == b"\n" else size
    wanted = n_lines
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start)
        cut = len(block)
        while (cut := block.rfind(b"\n", 0, cut)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + cut + 1
        end = start
    return 0
