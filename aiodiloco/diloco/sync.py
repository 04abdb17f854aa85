"""`SyncDiLoCo`: the same DiLoCo for training loops that are not async; the network runs in a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from aiodiloco.collective import AllReduceReport
    from aiodiloco.diloco.diloco import DiLoCo
    from aiodiloco.diloco.portal import NetworkThread

__all__ = ["SyncDiLoCo"]


class SyncDiLoCo:
    """A `DiLoCo` whose `step` just returns.

    Args:
        diloco: What does the work.
        network: The thread that the transport lives in.
    """

    def __init__(self, diloco: DiLoCo, network: NetworkThread) -> None:
        self._diloco = diloco
        self._network = network

    @property
    def sync_every(self) -> int:
        """Inner steps per round."""
        return self._diloco.sync_every

    @property
    def inner_step(self) -> int:
        """Inner steps taken."""
        return self._diloco.inner_step

    @property
    def round(self) -> int:
        """Outer steps taken."""
        return self._diloco.round

    @property
    def last_round(self) -> AllReduceReport | None:
        """What the latest all-reduce cost; None before the first."""
        return self._diloco.last_round

    @property
    def is_behind(self) -> bool:
        """Whether rounds may have been decided without this replica; see `DiLoCo`."""
        return self._diloco.is_behind

    @property
    def bytes_sent(self) -> int:
        """Bytes this replica wrote in all rounds."""
        return self._diloco.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes this replica read in all rounds."""
        return self._diloco.bytes_received

    def steps(self, total: int) -> Iterator[int]:
        """Iterate over the inner steps still to take; see `DiLoCo.steps`."""
        return self._diloco.steps(total)

    def step(self, *, loss: float | Tensor | None = None, tokens: int | None = None) -> None:
        """Count one inner step, and wait for the round when it is complete; see `DiLoCo.step`.

        Raises LeaseExpiredError once the run's driver is gone, also in the middle of a round.
        """
        self._network.check()
        if self._diloco.is_behind and not self._diloco.replays:
            self._network.call(lambda: self._diloco.step(loss=loss, tokens=tokens))
        elif self._diloco.advance(loss=loss, tokens=tokens):
            self.synchronize()

    def synchronize(self) -> None:
        """Average all replicas' work since the last round now; see `DiLoCo.synchronize`."""
        self._network.call(self._diloco.synchronize)

    def catch_up(self) -> None:
        """Take the outer steps of all rounds that were decided without this replica; see `DiLoCo.catch_up`."""
        self._network.call(self._diloco.catch_up)

    def outer_weights(self) -> AbstractContextManager[nn.Module]:
        """Hold the outer parameters in the model while inside; see `DiLoCo.outer_weights`."""
        return self._diloco.outer_weights()

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue; see `DiLoCo.state_dict`."""
        return self._diloco.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; see `DiLoCo.load_state_dict`."""
        self._diloco.load_state_dict(state)
