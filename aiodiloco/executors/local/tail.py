"""Read the last lines of a growing file, and the new ones as they come."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LineReader", "start_of_last_lines"]

_BLOCK_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16  # longer ones are broken up: a progress bar may go on for hours without a line end


class LineReader:
    """Reads a file's lines from the last `n_lines` on; blocks, so an event loop calls it in a worker thread.

    Lines are decoded as UTF-8; bytes that are not show as backslash escapes. With `grows` also what is written later.
    """

    def __init__(self, path: Path, *, n_lines: int, grows: bool) -> None:
        self._path = path
        size = path.stat().st_size if path.exists() else 0
        self._position = start_of_last_lines(path, n_lines)
        self._end = None if grows else size
        self._rest = b""

    def read(self) -> list[str]:
        """Return the next complete lines, at most about 1 MiB of them; empty when there are none yet."""
        while data := self._read_bytes():
            self._position += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _LONGEST_LINE_BYTES:
                lines.append(self._rest)
                self._rest = b""
            if lines:
                return [_decode(line) for line in lines]
        return []

    def rest(self) -> list[str]:
        """Return what follows the last line end, if anything."""
        return [_decode(self._rest)] if self._rest else []

    def _read_bytes(self) -> bytes:
        wanted = _BLOCK_BYTES * 16 if self._end is None else min(_BLOCK_BYTES * 16, self._end - self._position)
        try:
            with self._path.open("rb") as file:
                return os.pread(file.fileno(), max(0, wanted), self._position)
        except FileNotFoundError:
            return b""


def _decode(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", errors="backslashreplace")


def start_of_last_lines(path: Path, n_lines: int) -> int:
    """Return where the last `n_lines` lines of the file start, reading no more of it than those lines.

    An unfinished last line counts as one. 0 if there are fewer, the file's size for `n_lines=0`.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            return size if n_lines == 0 else _search_backwards(file.fileno(), size, n_lines)
    except FileNotFoundError:
        return 0


def _search_backwards(descriptor: int, size: int, n_lines: int) -> int:
    end = size - 1 if size and os.pread(descriptor, 1, size - 1) == b"\n" else size
    floor = max(0, size - n_lines * _LONGEST_LINE_BYTES)
    while end > floor:
        start = max(floor, end - _BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start)
        cut = len(block)
        while (cut := block.rfind(b"\n", 0, cut)) >= 0:
            n_lines -= 1
            if n_lines == 0:
                return start + cut + 1
        end = start
    return floor
