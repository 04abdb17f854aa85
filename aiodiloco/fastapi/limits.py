"""`Limits`: what one request, and all of them together, may ask of the service."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["Limits"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds that the service sets, whatever a request says.

    Attributes:
        max_replicas: Replicas of one run.
        max_timeout_s: Seconds one run may take.
        max_runs: Runs that this process holds at once; one more is refused with 429.
        max_streams: Event and log streams open at once; one more is refused with 503.
        max_body_bytes: Size of a request's body.
        max_log_ranks: Ranks whose logs one stream may follow together; of a larger run, a stream names one.
        gpus: What a request may ask for as `gpu`. Empty: nothing, replicas get what the executor gives them.
    """

    max_replicas: int = 64
    max_timeout_s: float = 24 * 3600.0
    max_runs: int = 16
    max_streams: int = 1000
    max_body_bytes: int = 1 << 16
    max_log_ranks: int = 64
    gpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_replicas", "max_runs", "max_streams", "max_body_bytes", "max_log_ranks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int >= 1, not {value!r}")
        if not 0 < self.max_timeout_s < math.inf:
            raise ValueError(f"max_timeout_s must be a finite number of seconds > 0, not {self.max_timeout_s!r}")
        if isinstance(self.gpus, str):
            raise ValueError(f"gpus must be a tuple of names, not {self.gpus!r}")  # noqa: TRY004 - one error for bad arguments
