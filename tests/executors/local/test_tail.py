from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aiodiloco.executors.local.tail import LineReader, start_of_last_lines

if TYPE_CHECKING:
    from pathlib import Path


def _read_all(reader: LineReader) -> list[str]:
    lines: list[str] = []
    while more := reader.read():
        lines += more
    return lines + reader.rest()


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\n", b"a\nb", b"a\n\n\nb\n", b"\n\n", b"a\r\nb\r\n"])
@pytest.mark.parametrize("n_lines", [0, 1, 2, 3, 100])
def test_the_last_lines_are_those_of_splitting_the_whole_text(tmp_path: Path, text: bytes, n_lines: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(text)
    whole = text.decode().replace("\r", "").split("\n")
    whole = whole[:-1] if whole[-1] == "" else whole
    expected = whole[-n_lines:] if n_lines else []
    assert _read_all(LineReader(path, n_lines=n_lines, grows=False)) == expected


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert _read_all(LineReader(tmp_path / "log", n_lines=5, grows=True)) == []


def test_bytes_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes("Δ".encode() + b"\xff\xfe\n")
    assert _read_all(LineReader(path, n_lines=5, grows=False)) == ["Δ\\xff\\xfe"]


def test_a_growing_file_gives_whole_lines_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    reader = LineReader(path, n_lines=5, grows=True)
    assert reader.read() == ["one"]
    assert reader.read() == []
    with path.open("ab") as file:
        file.write("o Δ".encode()[:-1])
    assert reader.read() == []
    with path.open("ab") as file:
        file.write("Δ".encode()[-1:] + b"\nthree")
    assert reader.read() == ["two Δ"]
    assert reader.rest() == ["three"]


def test_a_file_that_does_not_grow_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    reader = LineReader(path, n_lines=5, grows=False)
    with path.open("ab") as file:
        file.write(b"two\n")
    assert _read_all(reader) == ["one"]


def test_the_end_of_a_long_log_is_found_without_reading_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole of 1 TiB, which nobody reads in a second
        file.seek(0, 2)
        file.write(b"\nlast but one\nlast\n")
    assert _read_all(LineReader(path, n_lines=2, grows=False)) == ["last but one", "last"]
    assert start_of_last_lines(path, 5) > 1 << 39


def test_a_line_without_end_is_broken_up_and_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\r50%" * (1 << 20))
    lines = _read_all(LineReader(path, n_lines=100, grows=True))
    assert len(lines) > 1
    assert "".join(lines) == "\r50%" * (1 << 20)
