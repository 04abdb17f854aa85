"""What is measured, and what comes out: the words the benchmark and its rank processes share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from links.network import Shape

__all__ = ["Case", "limit_s"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One all-reduce to time.

    Attributes:
        backend: `"aiodiloco"`, through the store; `"gloo"`, from rank to rank; or `"bare"`, the requests to the store
            alone.
        world_size: Number of ranks.
        mib: MiB of fp32 tensors per rank.
        wire: Wire format.
        shape: The links; None for loopback.
        rounds: How many all-reduces one after another.
        options: Further arguments of `ObjectStoreAllReduce`.
    """

    backend: str
    world_size: int
    mib: int
    wire: str = "fp32"
    shape: Shape | None = None
    rounds: int = 3
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        where = "loopback" if self.shape is None else f"{self.shape.bandwidth / 1e6:g} MB/s"
        return f"{self.backend} N={self.world_size} {self.mib} MiB {self.wire} {where}"


def limit_s(wire_bytes: float, world_size: int, bandwidth: float) -> float:
    """Return the seconds no all-reduce can beat: 2M(N-1)/N bytes into every rank; for two, M."""
    return 2 * wire_bytes * (world_size - 1) / world_size / bandwidth
