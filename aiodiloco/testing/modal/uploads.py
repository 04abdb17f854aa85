"""What clients upload by content before they say what it is for."""

from __future__ import annotations

import time
from collections import OrderedDict

__all__ = ["Uploads"]

_KEPT_S = 600.0  # between the upload of something and the request that uses it


class Uploads:
    """Bytes by their digest, each until nobody has asked for it for a while."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # the one asked for last comes last

    def add(self, digest: str, data: bytes) -> None:
        """Keep `data`."""
        now = time.monotonic()
        while self._files and next(iter(self._files.values()))[0] < now - _KEPT_S:
            self._files.popitem(last=False)
        self._files[digest] = (now, data)
        self._files.move_to_end(digest)

    def get(self, digest: str) -> bytes | None:
        """Return what was uploaded, if it still is there."""
        if digest not in self._files:
            return None
        _, data = self._files[digest]
        self._files[digest] = (time.monotonic(), data)
        self._files.move_to_end(digest)
        return data
