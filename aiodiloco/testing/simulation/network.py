"""What all simulated processes share: the objects, each reached by a way of its own that fails in its own manner."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self
from unittest import mock

import anyio

from aiodiloco.store import MemoryStore, ResilientStore, uri
from aiodiloco.testing.faulty_store import Faults, FaultyStore
from aiodiloco.testing.simulation.process import Process, ProcessStore, running_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiodiloco.store import Buffer, Store

__all__ = ["ROOT", "Network", "Write", "simulated_scheme"]

ROOT = "simulated://store"

# Of these a flipped bit is not noticed, since they carry no digest: a driver relies on its store's own.
_UNSEALED = ("run.json", "cancel.json", "result.json", "lease/", "starts/", "calls/", "events/")


@dataclasses.dataclass(frozen=True)
class Write:
    """An object that was written."""

    at_s: float
    process: str
    key: str


class Network:
    """The objects, and the ways to them.

    Args:
        faults: What every way does.
        seed: Of the ways.

    Attributes:
        writes: Under `lease/`, in order.
    """

    def __init__(self, faults: Faults, *, seed: int) -> None:
        self.writes: list[Write] = []
        self._faults = faults
        self._seed = seed
        self._objects = MemoryStore()
        self._ways: list[FaultyStore] = []

    @property
    def injected(self) -> Counter[str]:
        """How often each fault happened."""
        total: Counter[str] = Counter()
        for way in self._ways:
            total.update(way.injected)
        return total

    def view(self, prefix: str = "") -> MemoryStore:
        """Return the objects below `prefix` as they are."""
        store = MemoryStore(prefix=prefix)
        store._objects = self._objects._objects
        return store

    def open(self, process: Process, prefix: str, *, patience_s: float | None) -> Store:
        """Return the way of a process to the objects below `prefix`; its client repeats requests for so long."""
        objects = _Noting(process, prefix, self)
        seed = f"{self._seed}/{process.name}/{len(self._ways)}"
        unflipped = FaultyStore(objects, dataclasses.replace(self._faults, flipped=0.0), seed=seed)
        faulty = FaultyStore(objects, self._faults, seed=seed)
        self._ways += [unflipped, faulty]
        store = ProcessStore(process, lambda key: unflipped if key.startswith(_UNSEALED) else faulty)
        return store if patience_s is None else ResilientStore(store, patience_s=patience_s)


class _Noting(MemoryStore):
    """Says who wrote which lease, and when."""

    def __init__(self, process: Process, prefix: str, network: Network) -> None:
        super().__init__(prefix=prefix)
        self._objects = network._objects._objects
        self._uri = f"{ROOT}/{prefix}" if prefix else ROOT
        self._process = process
        self._writes = network.writes

    async def put(self, key: str, data: Buffer) -> None:
        """Write the object; see `Store.put`."""
        await super().put(key, data)
        self._note(key)

    async def put_if_absent(self, key: str, data: Buffer) -> bool:
        is_new = await super().put_if_absent(key, data)
        if is_new:
            self._note(key)
        return is_new

    def _note(self, key: str) -> None:
        if key.startswith("lease/"):
            self._writes.append(Write(anyio.current_time(), self._process.name, key))


@dataclasses.dataclass(frozen=True)
class _Location:
    """`simulated://store[/prefix]`, as the process that opens it sees it."""

    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(text.removeprefix(ROOT).strip("/"))

    @property
    def uri(self) -> str:
        return f"{ROOT}/{self.prefix}" if self.prefix else ROOT

    def below(self, prefix: str) -> Self:
        return type(self)(f"{self.prefix}/{prefix}" if self.prefix else prefix)

    def open(self) -> Store:
        return running_process().open_store(self.prefix)


@contextmanager
def simulated_scheme() -> Iterator[None]:
    """Let URIs of simulated stores be opened while the block lasts."""
    with mock.patch.dict(uri._SCHEMES, {"simulated": _Location.parse}):
        yield
