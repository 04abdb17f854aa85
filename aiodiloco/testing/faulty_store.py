"""`FaultyStore`: a store that fails as networks and servers do, the same way at every run with the same seed."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import TYPE_CHECKING, Self

import anyio
import anyio.lowlevel

from aiodiloco.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from aiodiloco.store import Buffer, Store

__all__ = ["Faults", "FaultyStore"]


@dataclasses.dataclass(frozen=True)
class Faults:
    """How often what goes wrong: probabilities from 0 to 1, for each request by itself.

    Attributes:
        unavailable: A request is answered 503 and not carried out. A listing may break off in the middle.
        lost_reply: A write or delete is carried out, and answered 503 all the same.
        truncated: A read gives a front part of the bytes asked for, without an error.
        flipped: A read gives the bytes with a single bit changed.
        spoiled: A write stores the bytes with a single bit changed, and is answered as if it were right.
        stale_list: A listing is the one given last for the same prefix, the first time an empty one.
        latency_s: Seconds a request takes, on average; each takes from half of it to one and a half times it.
    """

    unavailable: float = 0.0
    lost_reply: float = 0.0
    truncated: float = 0.0
    flipped: float = 0.0
    spoiled: float = 0.0
    stale_list: float = 0.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= (1 if field.name != "latency_s" else float("inf")):
                raise ValueError(f"{field.name} must be a rate from 0 to 1 (latency_s: seconds >= 0), not {value!r}")


class FaultyStore:
    """A `Store` over another one that injects `Faults`.

    What happens to a request follows from the seed, the operation, the key and how often that was asked before, and
    from nothing else: neither from the order of requests for different keys nor from any clock. Time passes in
    `anyio.sleep` alone. So a failing seed fails again, and a simulator may drive it in virtual time.

    Args:
        store: What to ask. Entered and left with this.
        faults: What goes wrong how often.
        seed: Two stores with the same seed do the same to the same requests; give each rank its own.
        only: Requests for other keys than those that start with this are carried out as they are.
    """

    def __init__(self, store: Store, faults: Faults, *, seed: int | str = 0, only: str = "") -> None:
        self._store = store
        self._faults = faults
        self._seed = seed
        self._only = only
        self._asked: Counter[tuple[str, str]] = Counter()
        self._listed: dict[str, list[str]] = {}
        self._injected: Counter[str] = Counter()

    @property
    def uri(self) -> str:
        """The URI of the store underneath, which opens it without faults."""
        return self._store.uri

    @property
    def injected(self) -> Mapping[str, int]:
        """How often each fault was injected so far, by its name in `Faults`; latency is not counted."""
        return dict(self._injected)

    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, into: memoryview | None = None
    ) -> memoryview:
        """Return a range of the object, perhaps damaged; see `Store.get`."""
        fate = await self._begin("get", key)
        data = await self._store.get(key, start=start, length=length, into=into)
        if data.nbytes and self._happens("truncated", fate):
            return data[: fate.randrange(data.nbytes)]
        if data.nbytes and self._happens("flipped", fate):
            return _flip_in_place(data, fate) if into is not None else memoryview(_flipped(data, fate))
        return data

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        fate = await self._begin("put", key)
        await self._store.put(key, self._on_its_way_in(data, fate))
        self._end("put", key, fate)

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write the object unless it exists; see `Store.put_if_absent`."""
        fate = await self._begin("put_if_absent", key)
        written = await self._store.put_if_absent(key, self._on_its_way_in(data, fate))
        self._end("put_if_absent", key, fate)
        return written

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncIterator[str]:
        """Iterate over keys in order; see `Store.list`."""
        fate = await self._begin("list", prefix)
        if self._happens("stale_list", fate):
            keys = [key for key in self._listed.get(prefix, []) if key > start_after]
        else:
            keys = [key async for key in self._store.list(prefix, start_after=start_after)]
            if not start_after:
                self._listed[prefix] = keys
        breaks_off = len(keys) > 1 and self._happens("unavailable", fate)
        for key in keys[: fate.randrange(len(keys))] if breaks_off else keys:
            yield key
        if breaks_off:
            raise self._unavailable("list", prefix)

    async def delete(self, key: str) -> None:
        """Remove the object; see `Store.delete`."""
        fate = await self._begin("delete", key)
        await self._store.delete(key)
        self._end("delete", key, fate)

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._store.__aexit__(exc_type, exc, tb)

    async def _begin(self, operation: str, key: str) -> random.Random:
        """Let time pass, fail if it must be; return what decides the rest of the request."""
        fate = random.Random(f"{self._seed}/{operation}/{key}/{self._asked[operation, key]}")  # noqa: S311
        self._asked[operation, key] += 1
        if not key.startswith(self._only):
            return _Spared()
        if self._faults.latency_s:
            await anyio.sleep(self._faults.latency_s * fate.uniform(0.5, 1.5))
        else:
            await anyio.lowlevel.checkpoint()
        if self._happens("unavailable", fate):
            raise self._unavailable(operation, key)
        return fate

    def _end(self, operation: str, key: str, fate: random.Random) -> None:
        if self._happens("lost_reply", fate):
            raise self._unavailable(operation, key)

    def _on_its_way_in(self, data: Buffer, fate: random.Random) -> Buffer:
        return _flipped(data, fate) if len(data) and self._happens("spoiled", fate) else data

    def _happens(self, fault: str, fate: random.Random) -> bool:
        rate: float = getattr(self._faults, fault)
        happens = fate.random() < rate
        self._injected[fault] += happens
        return happens

    def _unavailable(self, operation: str, key: str) -> StoreUnavailableError:
        return StoreUnavailableError(f"503 Slow Down, injected into {operation} of {key!r} in {self.uri}")


class _Spared(random.Random):
    """Decides against every fault."""

    def random(self) -> float:
        return 1.0


def _flipped(data: Buffer, fate: random.Random) -> bytearray:
    """Return a copy of `data`, at least one byte, with one bit changed."""
    copy = bytearray(data)
    _flip_in_place(memoryview(copy), fate)
    return copy


def _flip_in_place(data: memoryview, fate: random.Random) -> memoryview:
    bit = fate.randrange(8 * data.nbytes)
    data[bit // 8] ^= 1 << bit % 8
    return data
