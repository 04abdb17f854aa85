"""Lines of text from the pieces in which a log arrives."""

from __future__ import annotations

__all__ = ["Lines"]


class Lines:
    """Joins pieces of text and cuts them into lines."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, piece: str) -> list[str]:
        """Return the lines that `piece` completes, without their line ends."""
        *lines, self._rest = (self._rest + piece).split("\n")
        return [line.removesuffix("\r") for line in lines]

    def rest(self) -> list[str]:
        """Return the last line, if it came without a line end. Only after the last piece."""
        last, self._rest = self._rest, ""
        return [last] if last else []
