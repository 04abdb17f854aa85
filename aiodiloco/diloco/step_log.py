"""What a replica says of its steps and rounds, and the tokens it saw in them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from aiodiloco.collective import AllReduceReport
    from aiodiloco.diloco.ports import Emit

__all__ = ["StepLog"]


class StepLog:
    """Emits an event for each inner step and each round, and counts tokens.

    Attributes:
        tokens: Seen since the replica's first step.
        tokens_before: Seen when the latest round ended.
        bytes_sent, bytes_received: In all rounds.
        last_round: The latest one; None before the first.
    """

    def __init__(self, emit: Emit | None) -> None:
        self.tokens = 0
        self.tokens_before = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.last_round: AllReduceReport | None = None
        self.emit: Emit = emit or _ignore
        self._clock = time.perf_counter()

    def step(self, inner_step: int, round: int, loss: float | Tensor | None, tokens: int | None) -> None:  # noqa: A002
        """Note an inner step, the `inner_step`-th, in this round."""
        data: dict[str, Any] = {"step": inner_step, "round": round}
        if loss is not None:
            data["loss"] = loss.detach() if isinstance(loss, torch.Tensor) else loss
        if tokens is not None:
            now = time.perf_counter()
            self.tokens += tokens
            data |= {"tokens": self.tokens, "tokens_per_s": tokens / max(now - self._clock, 1e-9)}
            self._clock = now
        self.emit("step", **data)

    def round(self, report: AllReduceReport, *, inner_step: int, sync_s: float) -> None:
        """Note a round that is over, after `sync_s` seconds."""
        self.last_round = report
        self.bytes_sent += report.bytes_sent
        self.bytes_received += report.bytes_received
        data = report.to_dict()
        del data["members"]  # the round's decision names them; a thousand names in every event would be a burden
        self.emit("round", step=inner_step, sync_s=sync_s, num_members=len(report.members), **data)

    def begin_round(self) -> None:
        """Count tokens for the next round from here on."""
        self.tokens_before = self.tokens

    def weight(self) -> float:
        """Return the tokens of this round. Raises ValueError if there were none."""
        if self.tokens <= self.tokens_before:
            raise ValueError("weigh_by_tokens needs the tokens of each step: step(tokens=…)")
        return float(self.tokens - self.tokens_before)


def _ignore(kind: str, /, **data: object) -> None:
    """Drop an event."""
