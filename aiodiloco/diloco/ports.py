"""What `DiLoCo` needs of others: a transport that averages, and somebody who takes its events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from aiodiloco.collective import AllReduceReport

__all__ = ["AllReduce", "Emit"]


class AllReduce(Protocol):
    """What DiLoCo needs of a transport; `ObjectStoreAllReduce` is one."""

    async def all_reduce(
        self,
        tensors: Mapping[str, Tensor],
        *,
        weight: float,
        wire: str | None,
        round: int | None,  # noqa: A002 - the field's word
        fragment: int,
        basis: bytes,
        settings: Mapping[str, str],
    ) -> AllReduceReport:
        """Replace every tensor by its weighted mean over the round's members, in place."""
        ...

    async def adopt(
        self,
        tensors: Mapping[str, Tensor],
        *,
        round: int,  # noqa: A002 - the field's word
        fragment: int,
    ) -> AllReduceReport | None:
        """Replace every tensor by the mean of a round decided without this rank; None if it is not decided.

        Raises RoundGoneError where the mean cannot be had any more.
        """
        ...

    async def announce(self, *, round: int, fragment: int) -> None:  # noqa: A002 - the field's word
        """Have the others wait for this rank in a round."""
        ...


class Emit(Protocol):
    """Takes an event. Must not block."""

    def __call__(self, kind: str, /, **data: object) -> None:
        """Note that `kind` happened; `data` are numbers, strings, or 0-d tensors to be read later."""
        ...
