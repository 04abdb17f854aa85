"""One process's place in a run: taken when it enters, and given back if it leaves without a trace."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.membership import claim_rank, withdraw_claim
from aiodiloco.errors import StoreError
from aiodiloco.store import ResilientStore, probe

if TYPE_CHECKING:
    from aiodiloco.collective.keys import Member
    from aiodiloco.store import Store

__all__ = ["Place"]

_ENTER_BOUND_S = 60.0
_PATIENCE_S = 15.0  # with a store that fails, before the run begins


class Place:
    """Opens the store, if it is this process's to open, and holds a rank.

    Args:
        store: The run's own prefix.
        owns_store: Whether to open and close it.
        world_size: Number of ranks.
        incarnation: As which process of its rank this one comes; see `ObjectStoreAllReduce`.
        takes_over: Whether to take the rank from a process that held it before.
    """

    def __init__(
        self, store: Store, *, owns_store: bool, world_size: int, incarnation: int | None, takes_over: bool
    ) -> None:
        self._store = store
        self._patient = ResilientStore(store, patience_s=_PATIENCE_S)
        self._owns_store = owns_store
        self._world_size = world_size
        self._incarnation = incarnation
        self._takes_over = takes_over
        self._nonce = secrets.token_hex(8)
        self._member: Member | None = None
        self._stack: contextlib.AsyncExitStack | None = None

    @property
    def is_open(self) -> bool:
        """True from `enter` to `leave`."""
        return self._stack is not None

    async def enter(self, rank: int) -> Member:
        """Become `rank` of the run, and return as which member; see `claim_rank` for what it raises."""
        if self.is_open:
            raise RuntimeError("this all-reduce is open already: make another object for another rank")
        async with contextlib.AsyncExitStack() as stack:
            with anyio.move_on_after(_ENTER_BOUND_S) as scope:
                if self._owns_store:
                    await stack.enter_async_context(self._store)
                await probe(self._patient)
                self._member = await claim_rank(
                    self._patient,
                    rank,
                    self._world_size,
                    self._nonce,
                    incarnation=self._incarnation,
                    takes_over=self._takes_over,
                )
            if self._member is None or scope.cancelled_caught:
                raise StoreError(f"the store at {self._store.uri} did not answer within {_ENTER_BOUND_S:g} s")
            self._stack = stack.pop_all()
        return self._member

    async def leave(self, *, withdraws: bool) -> None:
        """Close the store; give the rank back first if this process wrote nothing under it."""
        stack, self._stack = self._stack, None
        if withdraws and self._member is not None:
            await withdraw_claim(ResilientStore(self._store), self._member, self._nonce)
        if stack is not None:
            await stack.aclose()
