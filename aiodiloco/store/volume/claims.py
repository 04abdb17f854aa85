"""Who creates an object: one entry per key in a `modal.Dict`, whose first writer wins."""

from __future__ import annotations

import dataclasses
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from aiodiloco.errors import StoreAccessError, StoreError
from aiodiloco.store.volume.errors import asking

if TYPE_CHECKING:
    from collections.abc import Iterator

    import modal

__all__ = ["Claim", "Claims"]

_ATTEMPTS = 5  # an entry seen to be there can be gone when it is read only if it expired in between


@dataclasses.dataclass(frozen=True)
class Claim:
    """One writer's claim to have created an object.

    Attributes:
        token: Tells one claim from all others.
        data: What the object shall be, so that anyone can write it if the claimant dies; None: it lies in a file.
        successor: The generation to look at once the object was written; 0: it may not have been yet. If it was and
            is not there now, it was deleted.
    """

    token: str
    data: bytes | None = None
    successor: int = 0

    @classmethod
    def of(cls, data: bytes | None) -> Self:
        """Return a new claim."""
        return cls(secrets.token_hex(16), data)

    @property
    def is_settled(self) -> bool:
        """Whether nobody is to write the object any more."""
        return self.successor > 0


class Claims:
    """Claims by path and generation.

    An object that was deleted may be created again, and a Dict has no compare-and-swap to replace its claim by; so the
    next creation has an entry of its own, the next generation, and no entry is ever removed. The first one says, once
    it is settled, which is the next; that may be too low but never too high. Modal drops an entry seven days after it
    was last read or written. By then the object itself says that it exists.
    """

    def __init__(self, entries: modal.Dict, name: str, timeout_s: float) -> None:
        self._entries = entries
        self._name = name
        self._timeout_s = timeout_s

    async def make(self, path: str, generation: int, claim: Claim) -> Claim:
        """Make a claim unless there is one; return the one there is.

        A request whose answer was lost is sent again by the client and then finds its own claim: it is told by its
        token.
        """
        for _ in range(_ATTEMPTS):
            with self._asking(f"claiming {path}"):
                if await self._entries.put.aio(_entry(path, generation), _value(claim), skip_if_exists=True):
                    return claim
            if (found := await self.get(path, generation)) is not None:
                return found
        raise StoreError(f"claiming {path} in {self._name}: Modal's Dict says that an entry exists and has none")

    async def get(self, path: str, generation: int) -> Claim | None:
        """Return a claim, if there is one."""
        with self._asking(f"reading the claim to {path}"):
            value = await self._entries.get.aio(_entry(path, generation))
        return None if value is None else Claim(*value)

    async def settle(self, path: str, generation: int, claim: Claim) -> None:
        """Note that the object of a claim was written, or is not to be written any more."""
        settled = _value(dataclasses.replace(claim, data=None, successor=generation + 1))
        with self._asking(f"settling the claim to {path}"):
            await self._entries.update.aio({_entry(path, 0): settled, _entry(path, generation): settled})

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            with asking(f"{what} in {self._name}", timeout_s=self._timeout_s):
                yield
        except FileNotFoundError as exc:
            raise StoreAccessError(
                f"{what} in {self._name}: the Dict that decides who creates an object is gone ({exc}). Was it deleted? "
                "Who created what is lost with it: start a new run under a new prefix"
            ) from exc

    async def latest(self, path: str) -> tuple[int, Claim] | None:
        """Return the latest generation that was claimed, and its claim."""
        latest, generation = None, 0
        while (claim := await self.get(path, generation)) is not None:
            latest = (generation, claim)
            if not claim.is_settled:
                break
            generation = max(generation + 1, claim.successor)
        return latest


def _entry(path: str, generation: int) -> str:
    return f"{path}#{generation}"  # no key has a '#'


def _value(claim: Claim) -> tuple[Any, ...]:
    return dataclasses.astuple(claim)  # values are pickled: plain ones need nothing of ours to be read
