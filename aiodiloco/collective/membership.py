"""Who is in the run: the run record, one claim per rank, and waiting until every rank has one."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.keys import (
    HEARTBEATS,
    MEMBERS,
    RUN,
    Member,
    claim_key,
    heartbeat_key,
    is_of_predecessor,
    parse_claim_key,
)
from aiodiloco.collective.waiting import Backoff, read_intact
from aiodiloco.errors import ChunkError, KeyNotFoundError, RankTakenError, StoreError, WorldSizeError

if TYPE_CHECKING:
    from aiodiloco.store import Store

__all__ = [
    "BEAT_S",
    "DEAD_AFTER_S",
    "beat",
    "check_rank",
    "claim_rank",
    "forget_predecessors",
    "list_members",
    "wait_for_members",
    "withdraw_claim",
]

BEAT_S = 5.0
"""Seconds between two heartbeats."""

DEAD_AFTER_S = 3 * BEAT_S
"""Whoever shows no heartbeat for so long has stopped."""

_LOOK_S = 1.0
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
        incarnation: How often the rank was started before, where somebody counts: a lower one is over. The member may
            become a later one: what runs again, unseen by who counts, comes with the same number.
        takes_over: Whether a rank may be taken from a process that held it and has stopped: one that left, or whose
            heartbeat is the same after 15 seconds.

    Raises:
        WorldSizeError: the run has another world size.
        RankTakenError: another process holds the rank.
    """
    await _fix_world_size(store, rank, world_size)
    member, backoff = Member(rank, incarnation or 0), Backoff()
    while True:
        held = (await list_members(store)).get(rank)
        if held is not None:
            if not takes_over or (held >= member and not await _has_stopped(store, held)):
                raise await _rank_taken(store, held)
            member = max(member, Member(rank, held.incarnation + 1))
        if await _claim(store, member, world_size, nonce):
            return member
        await backoff.pause()


async def _rank_taken(store: Store, held: Member) -> RankTakenError:
    holder = await _read_claim(store, held)
    return RankTakenError(
        f"rank {held.rank} of {store.uri} was taken by process {holder.get('pid')} on {holder.get('host')}: give each "
        "replica its own rank. A rank that left can come back to a run with checkpoints; without, start a new run "
        "under a new prefix"
    )


async def _has_stopped(store: Store, member: Member) -> bool:
    """Return whether a member has left, or shows no sign of life for as long as three heartbeats."""

    async def read() -> dict[str, Any]:
        try:
            return parse_document(await store.get(heartbeat_key(member)), heartbeat_key(member), "left")
        except KeyNotFoundError:
            return {"left": False}

    first = await read_intact(heartbeat_key(member), read)
    deadline = anyio.current_time() + DEAD_AFTER_S
    while not first["left"] and anyio.current_time() < deadline:
        await anyio.sleep(_LOOK_S)
        if await read_intact(heartbeat_key(member), read) != first:
            return False
    return True


async def beat(store: Store, member: Member, number: int, *, left: bool = False) -> None:
    """Show that this member lives, with a number that grows; or that it has left."""
    await store.put(heartbeat_key(member), seal_document({"beat": number, "left": left}))


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
            await store.delete(heartbeat_key(member))


async def forget_predecessors(store: Store, member: Member) -> None:
    """Delete claims and heartbeats of earlier processes of this member's rank.

    Only for a member that contributed, and so never withdraws its own claim: the rank's numbers must not begin again.
    """
    for prefix in (MEMBERS, HEARTBEATS):
        async for key in store.list(f"{prefix}{member.rank}/"):
            if is_of_predecessor(key, member):
                await store.delete(key)


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
    backoff, enough_at = Backoff(world_size), math.inf
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
