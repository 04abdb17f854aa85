"""Who is in the run: the run record, one claim per rank, and waiting until every rank has one."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.keys import MEMBERS, RUN, Member, claim_key, parse_claim_key
from aiodiloco.collective.waiting import Backoff, read_intact
from aiodiloco.errors import ChunkError, RankTakenError, StoreError, WorldSizeError

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = ["check_rank", "claim_rank", "list_members", "wait_for_members", "withdraw_claim"]

_WITHDRAW_BOUND_S = 5.0


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless both are ints and 0 <= rank < world_size."""
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"world_size must be an int >= 1, not {world_size!r}")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < world_size:
        raise ValueError(f"rank must be an int from 0 to {world_size - 1} (world_size {world_size}), not {rank!r}")


async def claim_rank(
    store: Store, rank: int, world_size: int, nonce: str, *, incarnation: int | None = None, takes_over: bool = False
) -> Member:
    """Become `rank` of the run under this store prefix, and return as which member; the first fixes the world size.

    Cancelled or failed in between, the claim is withdrawn, so that it can be made again.

    Args:
        store: The run's own prefix.
        rank: Which rank.
        world_size: How many there are.
        nonce: Marks the claim as one's own.
        incarnation: As which process of this rank; None takes 0, or with `takes_over` the next.
        takes_over: Whether a rank that is held, or was, may be taken from its holder, which is then out of the run.

    Raises:
        WorldSizeError: the run has another world size.
        RankTakenError: this member already is, or was, in the run.
    """
    await _fix_world_size(store, rank, world_size)
    held = (await list_members(store)).get(rank)
    if incarnation is None:
        incarnation = held.incarnation + 1 if takes_over and held is not None else 0
    while True:
        member = Member(rank, incarnation)
        if held is not None and held > member:
            raise RankTakenError(f"rank {rank} of {store.uri} is held by process {held} already: {member} is over")
        if await _claim(store, member, world_size, nonce):
            return member
        if not takes_over:
            holder = await _read_claim(store, member)
            raise RankTakenError(
                f"rank {rank} of {store.uri} was taken by process {holder.get('pid')} on {holder.get('host')}: give "
                "each replica its own rank; a rank that left can only come back to a run with checkpoints"
            )
        incarnation += 1


async def _claim(store: Store, member: Member, world_size: int, nonce: str) -> bool:
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "world_size": world_size, "nonce": nonce}
    try:
        is_mine = await store.put_if_absent(claim_key(member), seal_document(claim))
    except BaseException:
        await withdraw_claim(store, member, nonce)
        raise
    return is_mine or (await _read_claim(store, member)).get("nonce") == nonce


async def withdraw_claim(store: Store, member: Member, nonce: str) -> None:
    """Delete this member's claim if it is the one made with `nonce`; bounded, and not interrupted by anyio scopes.

    Only for a member that never contributed: others may wait for those who did.
    """
    with anyio.move_on_after(_WITHDRAW_BOUND_S, shield=True), contextlib.suppress(StoreError, ChunkError):
        if (await _read_claim(store, member)).get("nonce") == nonce:
            await store.delete(claim_key(member))


async def _read_claim(store: Store, member: Member) -> dict[str, Any]:
    key = claim_key(member)

    async def read() -> dict[str, Any]:
        return parse_document(await store.get(key), f"{store.uri}/{key}")

    return await read_intact(key, read)


async def wait_for_members(store: Store, world_size: int, *, min_members: int, grace_s: float) -> frozenset[Member]:
    """Return one member per rank once all are there, or fewer. The caller bounds the wait.

    Args:
        store: The run's own prefix.
        world_size: How many ranks there may be.
        min_members: With so many the run may begin,
        grace_s: once the others have had so many seconds more.
    """
    backoff, enough_at = Backoff(), math.inf
    while len(members := await list_members(store)) < world_size:
        if len(members) >= min_members:
            enough_at = min(enough_at, anyio.current_time())
        if anyio.current_time() - enough_at >= grace_s:
            break
        await backoff.pause()
    return frozenset(members.values())


async def list_members(store: Store) -> dict[int, Member]:
    """Return the latest incarnation of every rank that has claimed its place."""
    found = [m async for key in store.list(MEMBERS) if (m := parse_claim_key(key))]
    return {m.rank: m for m in sorted(found)}


async def _fix_world_size(store: Store, rank: int, world_size: int) -> None:
    if await store.put_if_absent(RUN, seal_document({"version": 1, "n_replicas": world_size})):
        return

    async def check() -> None:
        # Whoever launched the run may have written this, without a digest.
        run = parse_document(await store.get(RUN), f"{store.uri}/{RUN}", "n_replicas", sealed=False)
        if run["n_replicas"] != world_size:
            raise _OtherSizeError(run["n_replicas"])

    try:
        await read_intact(RUN, check)
    except ChunkError as exc:
        if not isinstance(exc.__cause__, _OtherSizeError):
            raise
        raise WorldSizeError(
            f"rank {rank} was given world_size={world_size}, but the run at {store.uri} has {exc.__cause__} "
            "replicas: pass the same world_size to every replica, or use a new prefix for a new run"
        ) from None


class _OtherSizeError(ChunkError):
    """The run has another size, or its record, which may have no digest, was damaged so as to say so."""
