"""The requests of an all-reduce and nothing else: what the emulated links and the server themselves allow.

Threads move the same chunks in the same order with the same number of requests under way, from one buffer and into
another. Nothing is encoded, checked, added or decided, so no all-reduce through this store can be faster.
"""

from __future__ import annotations

import http.client
import itertools
import queue
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiodiloco.collective.plan import Link, choose_algorithm, choose_chunk_bytes, owned_chunks, owner_of, ring_order

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BareExchange"]

_UPLOADS, _DOWNLOADS = 4, 8
_AGAIN_S = 0.01


class BareExchange:
    """One rank's part in it.

    Args:
        url: Endpoint of the server.
        prefix: Bucket and prefix.
        rank: Which rank.
        world_size: How many there are.
        nbytes: Of one payload.
    """

    def __init__(self, url: str, prefix: str, *, rank: int, world_size: int, nbytes: int) -> None:
        self._host, self._prefix, self._rank, self._world_size = urlsplit(url).netloc, prefix, rank, world_size
        self._chunk = memoryview(bytearray(choose_chunk_bytes(nbytes, nbytes, world_size)))
        self._num_chunks = -(-nbytes // len(self._chunk))
        self._scatters = choose_algorithm(nbytes, world_size, Link()) == "scatter"
        self._uploads: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._downloads: queue.SimpleQueue[tuple[str, int | None] | None] = queue.SimpleQueue()
        self._missing: dict[int, int] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Return when all is sent and received."""
        mine, theirs = self._plan()
        for key in mine:
            self._uploads.put(key)
        for item in theirs:
            self._downloads.put(item)
        for _ in range(_DOWNLOADS):
            self._downloads.put(None)
        if not self._missing:
            self._end_uploads()
        jobs: list[Callable[[], None]] = [self._upload] * _UPLOADS + [self._download] * _DOWNLOADS
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _plan(self) -> tuple[list[str], list[tuple[str, int | None]]]:
        """Return the keys to put, and those to get, each with the own chunk of the mean that it goes into."""
        peers = [rank for rank in range(self._world_size) if rank != self._rank]
        if not self._scatters:
            chunks = range(self._num_chunks)
            return [self._key(self._rank, c) for c in chunks], [(self._key(p, c), None) for c in chunks for p in peers]
        order = ring_order(self._num_chunks, self._rank, self._world_size)
        mine = owned_chunks(self._num_chunks, self._rank, self._world_size)
        self._missing = {chunk: len(peers) for chunk in mine}
        first: list[tuple[str, int | None]] = [(self._key(peer, chunk), chunk) for chunk in mine for peer in peers]
        means = [chunk for chunk in order if owner_of(chunk, self._num_chunks, self._world_size) != self._rank]
        second: list[tuple[str, int | None]] = [(self._key("mean", chunk), None) for chunk in means]
        ahead = 2 * len(peers)  # contributions to two chunks, before the first chunk of a mean can be there
        later = itertools.zip_longest(first[ahead:], second)
        mixed = first[:ahead] + [item for pair in later for item in pair if item is not None]
        return [self._key(self._rank, chunk) for chunk in order], mixed

    def _key(self, who: int | str, chunk: int) -> str:
        return f"/{self._prefix}/rounds/{who}/{chunk:06d}"

    def _end_uploads(self) -> None:
        for _ in range(_UPLOADS):
            self._uploads.put(None)

    def _upload(self) -> None:
        connection = http.client.HTTPConnection(self._host)
        while (key := self._uploads.get()) is not None:
            connection.request("PUT", key, self._chunk)
            connection.getresponse().read()

    def _download(self) -> None:
        connection, into = http.client.HTTPConnection(self._host), memoryview(bytearray(len(self._chunk)))
        while (item := self._downloads.get()) is not None:
            key, chunk = item
            while not _get(connection, key, into):
                time.sleep(_AGAIN_S)
            if chunk is not None:
                self._count(chunk)

    def _count(self, chunk: int) -> None:
        with self._lock:
            self._missing[chunk] -= 1
            if self._missing[chunk]:
                return
            self._uploads.put(self._key("mean", chunk))
            if not any(self._missing.values()):
                self._end_uploads()


def _get(connection: http.client.HTTPConnection, key: str, into: memoryview) -> bool:
    connection.request("GET", key)
    response = connection.getresponse()
    if response.status != 200:
        response.read()
        return False
    filled = 0
    while filled < len(into) and (num := response.readinto(into[filled:])):
        filled += num
    return True
