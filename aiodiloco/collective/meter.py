"""What one all-reduce cost: requests, bytes, and seconds by phase."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiodiloco.collective.keys import Member
    from aiodiloco.collective.plan import Algorithm, Link
    from aiodiloco.records import JSON

__all__ = ["AllReduceReport", "Meter"]


@dataclasses.dataclass(frozen=True)
class AllReduceReport:
    """What an all-reduce did, as seen by this rank.

    Attributes:
        round: Number of the round within its fragment, from 0.
        fragment: Which part of the model.
        members: Whose contributions are in the mean, in rank order.
        included: Whether this rank's is.
        absent: The ranks whose contributions are not, in order: late, dead, or left out.
        excluded: Who contributed in vain, as `"rank-incarnation"`, and why.
        settings: What all members had agreed on besides the tensors.
        algorithm: `"gather"` or `"scatter"`.
        num_chunks: Cells of the chunk grid.
        bytes_sent: Object bytes this rank wrote.
        bytes_received: Object bytes this rank read.
        requests: Store requests this rank made, polls included.
        seconds: Wall time in all (`total`), and by phase the time spent in it summed over concurrent tasks:
            `encode`, `upload`, `wait` (for objects not yet there), `download`, `reduce`, `apply`.
        link: What this rank measured of its way to the store; None where too little moved to tell.
    """

    round: int
    fragment: int
    members: tuple[Member, ...]
    included: bool
    absent: tuple[int, ...]
    excluded: Mapping[str, str]
    settings: Mapping[str, str]
    algorithm: Algorithm
    num_chunks: int
    bytes_sent: int
    bytes_received: int
    requests: int
    seconds: Mapping[str, float]
    link: Link | None = None

    def to_dict(self) -> dict[str, JSON]:
        """Return the report as JSON values; members as `"rank-incarnation"`."""
        plain = {name: dict(getattr(self, name)) for name in ("excluded", "settings", "seconds")}
        ranks = {"members": [str(member) for member in self.members], "absent": list(self.absent)}
        return {**dataclasses.asdict(self), **ranks, **plain}


class Meter:
    """Counts for one all-reduce. Used on the event loop only, so plain additions are enough."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.requests = 0
        self.shortest_s = math.inf  # of a request: little but latency, since each round has some that move nothing
        self.seconds = dict.fromkeys(("encode", "upload", "wait", "download", "reduce", "apply"), 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    @contextlib.contextmanager
    def request(self, phase: str) -> Iterator[None]:
        """Count one store request and its time."""
        self.requests += 1
        began = time.perf_counter()
        with self.phase(phase):
            yield
        self.shortest_s = min(self.shortest_s, time.perf_counter() - began)
