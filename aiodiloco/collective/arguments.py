"""Checks of what a caller asks of an all-reduce: a clear error at once, not a round that cannot end."""

from __future__ import annotations

import math

from aiodiloco.codec import wire_names
from aiodiloco.collective.choice import Rules
from aiodiloco.collective.plan import ALGORITHMS

__all__ = ["WEIGHTS", "check_grace", "check_number", "check_plan", "check_positive", "check_wire", "checked_rules"]

WEIGHTS = (1e-20, 1e20)
"""Between these a weight must be: products with any sane value stay within float32."""

_MAX_CHUNK_BYTES = 4 << 30


def check_wire(wire: str) -> None:
    """Raise ValueError unless `wire` names a format."""
    if wire not in wire_names():
        raise ValueError(f"wire must be one of {', '.join(wire_names())}, not {wire!r}")


def check_plan(algorithm: str, chunk_bytes: int | None, concurrency: int) -> None:
    """Raise ValueError unless rounds can be planned by these."""
    if algorithm not in (*ALGORITHMS, "auto"):
        raise ValueError(f"algorithm must be 'auto', 'gather' or 'scatter', not {algorithm!r}")
    if chunk_bytes is not None and not 1 <= chunk_bytes <= _MAX_CHUNK_BYTES:
        raise ValueError(
            f"chunk_bytes must be 1 to {_MAX_CHUNK_BYTES} (4 GiB: S3 takes 5 in one request), or None to choose by "
            f"size, not {chunk_bytes}"
        )
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")


def checked_rules(world_size: int, min_replicas: int | None, max_norm_ratio: float) -> Rules:
    """Return what a round needs, or raise ValueError."""
    least = world_size if min_replicas is None else min_replicas
    if isinstance(least, bool) or not isinstance(least, int) or not 1 <= least <= world_size:
        raise ValueError(
            f"min_replicas must be an int from 1 to world_size ({world_size}), or None, not {min_replicas!r}"
        )
    if not max_norm_ratio > 1:
        raise ValueError(f"max_norm_ratio must be more than 1, not {max_norm_ratio!r}")
    return Rules(least, max_norm_ratio)


def check_grace(grace: float) -> None:
    """Raise ValueError unless it is a number of seconds that ends."""
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace must be a finite number of seconds >= 0, not {grace!r}")


def check_positive(name: str, value: float, low: float = 0.0, high: float = math.inf) -> None:
    """Raise ValueError unless `value`, called `name`, is a number between `low` and `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (low < value < high):
        limits = f"between {low:g} and {high:g}" if low else "> 0"
        raise ValueError(f"{name} must be a finite number {limits}, not {value!r}")


def check_number(name: str, value: int, least: int) -> None:
    """Raise ValueError unless `value`, the number of a round or a fragment, may come now."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be an int >= {least}, not {value!r}; rounds that are over are not repeated: "
            "to go back to an earlier state, start a new run under a new prefix"
        )
