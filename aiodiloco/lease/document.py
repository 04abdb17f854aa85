"""What a lease says, and where it lies: `lease/<generation>.json`.

A generation is one driver's time at the wheel. Who creates the object drives; nobody else writes it. The driver
overwrites it at every beat, with a higher count. The highest generation is the one that counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.errors import KeyNotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiodiloco.store import Store

__all__ = ["LeaseDocument", "LeaseState", "LeaseTerms", "lease_key", "read_generation", "read_lease", "read_terms"]

PREFIX = "lease/"

_MOST_READS, _READ_AGAIN_S = 5, 0.1  # a read may come damaged, and what it is for must not be mistaken
_RUN = "run.json"  # names the terms, for replicas: they know of nothing else before they join


class LeaseState(StrEnum):
    """What the driver says of itself."""

    held = "held"
    released = "released"  # it has let go of the run, which goes on; the next driver need not wait
    ended = "ended"  # the run is over


@dataclasses.dataclass(frozen=True)
class LeaseTerms:
    """How often a driver beats, and how long it may be silent.

    Attributes:
        ttl_s: A lease that has not changed for so long, on the observer's own clock, is stale.
        beat_s: Seconds between two beats.
    """

    ttl_s: float
    beat_s: float

    def __post_init__(self) -> None:
        for name, value in (("ttl_s", self.ttl_s), ("beat_s", self.beat_s)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} of a lease must be a finite number of seconds > 0, not {value!r}")
        if 3 * self.beat_s > self.ttl_s:
            raise ValueError(
                f"a lease with a beat of {self.beat_s:g} s needs a time to live of at least three beats, not "
                f"{self.ttl_s:g} s: one lost beat must not end a run"
            )

    @classmethod
    def of(cls, ttl_s: float) -> LeaseTerms:
        """Return terms with six beats to a time to live."""
        beat_s = ttl_s / 6 if isinstance(ttl_s, int | float) else ttl_s
        return cls(ttl_s, beat_s)


@dataclasses.dataclass(frozen=True)
class LeaseDocument:
    """One beat.

    Attributes:
        generation: 1 for the first driver of the run, one more for each that took over.
        beat: 0 at the start of the generation, then one more each time.
        holder: Names the driver's process, for people, and marks the generation as one's own.
        terms: What it promises.
        elapsed_s: Seconds since the run was launched, by its drivers' clocks.
        spent_gpu_s: GPU seconds that its replicas have run, by its drivers' clocks.
        incarnations: Rank -> its latest incarnation, for ranks that were started more than once.
        state: What the driver says of itself.
    """

    generation: int
    beat: int
    holder: str
    terms: LeaseTerms
    elapsed_s: float = 0.0
    spent_gpu_s: float = 0.0
    incarnations: Mapping[int, int] = dataclasses.field(default_factory=dict, hash=False)
    state: LeaseState = LeaseState.held

    @property
    def mark(self) -> tuple[int, int]:
        """What changes with every beat."""
        return self.generation, self.beat

    def to_json(self) -> bytes:
        """Return the document as it is stored."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes | memoryview, where: str) -> LeaseDocument:
        """Return what `to_json` wrote. Raises StoreError, naming `where`, if that is not it."""
        try:
            fields = json.loads(bytes(data))
            fields["terms"] = LeaseTerms(**fields["terms"])
            fields["state"] = LeaseState(fields["state"])
            fields["incarnations"] = {int(rank): int(number) for rank, number in fields["incarnations"].items()}
            names = {field.name for field in dataclasses.fields(cls)}
            return cls(**{name: value for name, value in fields.items() if name in names})
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise StoreError(
                f"{where} holds {bytes(data)[:80]!r}, not a lease: is something else writing here?"
            ) from exc


def lease_key(generation: int) -> str:
    """Return the key of a generation; keys sort as generations do."""
    return f"{PREFIX}{generation:08d}.json"


async def read_generation(store: Store, generation: int) -> LeaseDocument | None:
    """Return this generation's latest beat, or None if there is no such generation."""
    key = lease_key(generation)
    try:
        data = await store.get(key)
    except KeyNotFoundError:
        return None
    return LeaseDocument.from_json(data, f"{store.uri}/{key}")


async def read_lease(store: Store) -> LeaseDocument | None:
    """Return the latest beat of the latest generation, or None if nobody ever drove this run.

    Args:
        store: An open store, rooted at the run.
    """
    keys = [key async for key in store.list(PREFIX)]
    numbers = [int(digits) for key in keys if (digits := key.removeprefix(PREFIX).removesuffix(".json")).isdecimal()]
    return await read_generation(store, max(numbers)) if numbers else None


async def read_terms(store: Store) -> LeaseTerms | None:
    """Return the terms on which the replicas of this run live, or None where no lease binds them.

    Args:
        store: An open store, rooted at the run.

    Raises:
        StoreError: the store could not be read, or `run.json` is not what it should be.
    """
    for remaining in reversed(range(_MOST_READS)):
        try:
            data = bytes(await store.get(_RUN))
        except KeyNotFoundError:
            return None
        try:
            return _terms_of(json.loads(data))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            if not remaining:
                raise StoreError(
                    f"{store.uri}/{_RUN} holds {data[:80]!r}, not a run: is something else writing here?"
                ) from exc
        await anyio.sleep(_READ_AGAIN_S)
    raise AssertionError("unreachable")


def _terms_of(fields: dict[str, Any]) -> LeaseTerms | None:
    lease = fields.get("lease")
    if lease is None or not lease["binds_replicas"]:
        return None
    return LeaseTerms(lease["ttl_s"], lease["beat_s"])
