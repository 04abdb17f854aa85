"""Deciding a round: watch who arrives, choose, and write it down once for all."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import anyio

from aiodiloco.collective.agreement import Agreement, explain_differences
from aiodiloco.collective.choice import Choice, Rules, choose, who_is_late
from aiodiloco.collective.decision import Decision, Manifest, list_arrivals, read_if_there, read_when_there
from aiodiloco.collective.plan import slowest_link
from aiodiloco.collective.waiting import Backoff
from aiodiloco.errors import ChunkError, KeyNotFoundError
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiodiloco.collective.keys import Member, RoundKeys
    from aiodiloco.collective.meter import Meter
    from aiodiloco.collective.patience import Lateness
    from aiodiloco.store import Store

__all__ = ["Decider", "Own", "refuse"]

_READS_AT_ONCE = 32  # of manifests: small objects, so latency is all they cost
_FEW = 8  # of so many who are missing, manifests are asked for before a listing tells that they are there
_MOST_NAMED = 5
_UNEXPLAINED = "contributions differ in a way their payload.json does not show"
_PATIENCE_S = 5.0  # for the payload.json of ranks that are late, before a refusal is written without them


class Own(NamedTuple):
    """The deciding rank's own contribution, which is whole, while its manifest is being put.

    Attributes:
        member: This rank.
        manifest: What it puts.
        is_put: Set once that is done. There is no decision before.
    """

    member: Member
    manifest: Manifest
    is_put: anyio.Event


@dataclasses.dataclass(frozen=True)
class Decider:
    """Decides one round. Any number of ranks may try: the first decision stands, and all read that one.

    Attributes:
        expected: Whom to wait for.
        rules: What the round needs.
        lateness: How late members were in earlier rounds; this round is added.
        grace_s: The least time that the late are given once enough are there.
        is_first: Whether to read manifests as they come; else only when the round can be decided, should the first
            decider not do it.
    """

    store: Store
    keys: RoundKeys
    expected: frozenset[Member]
    rules: Rules
    lateness: Lateness
    grace_s: float
    meter: Meter
    is_first: bool = True

    async def run(self, own: Own | None = None) -> Decision | None:
        """Wait until the round can be decided, and decide it. The caller bounds the wait.

        Returns:
            The decision if there is a mean and this call decided; else it must be read.
        """
        seen_at: dict[Member, float] = {}
        manifests: dict[Member, Manifest] = {}
        if own is not None:
            seen_at[own.member], manifests[own.member] = anyio.current_time(), own.manifest
        quorum_at = float("inf")
        backoff = Backoff(len(self.expected))
        while True:
            expected = self.expected | await self._look(seen_at, manifests)
            now = anyio.current_time()
            if len({member.rank for member in seen_at}) >= self.rules.min_members:
                quorum_at = min(quorum_at, now)
            is_over = now - quorum_at >= self.lateness.patience_s(self.grace_s)
            if self.is_first or is_over or not who_is_late(expected, seen_at):
                try:
                    await self._read(manifests, seen_at)
                except ChunkError as exc:
                    await _write(self.store, self.keys, Decision({}, f"a manifest cannot be read: {exc}"), self.meter)
                    return None
                choice = choose(expected, manifests, self.rules, is_over=is_over)
                if choice is not None:
                    if own is not None:
                        await own.is_put.wait()
                    for seen in seen_at.values():
                        self.lateness.note(seen - quorum_at)
                    return await self._write(choice, manifests)
            await backoff.pause()

    async def _look(self, seen_at: dict[Member, float], manifests: dict[Member, Manifest]) -> set[Member]:
        """Note who has arrived, and when that was first seen; return who announced a contribution.

        Where few are missing, their manifests are asked for along with the listing: after it, that costs one round trip
        more. What does not come is read after it all the same.
        """
        found: list[tuple[set[Member], set[Member]]] = []

        async def look() -> None:
            with self.meter.request("wait"):
                found.append(await list_arrivals(self.store, self.keys))

        async def ask(member: Member) -> None:
            with contextlib.suppress(KeyNotFoundError, ChunkError):
                key = self.keys.manifest(member)
                manifests[member] = await read_if_there(self.store, key, Manifest.from_json, self.meter)

        missing = self.expected - seen_at.keys()
        likely = sorted(missing) if self.is_first and len(missing) <= _FEW else []
        await map_concurrently(lambda m: look() if m is None else ask(m), [None, *likely], limit=1 + _FEW)
        whole, announced = found[0]
        now = anyio.current_time()
        for member in (whole | manifests.keys()) - seen_at.keys():
            seen_at[member] = now
        return announced

    async def _read(self, manifests: dict[Member, Manifest], arrived: Iterable[Member]) -> None:
        """Read the manifests that are new."""

        async def read(member: Member) -> tuple[Member, Manifest]:
            return member, await read_when_there(self.store, self.keys.manifest(member), Manifest.from_json, self.meter)

        new = sorted(member for member in arrived if member not in manifests)
        manifests.update(await map_concurrently(read, new, limit=_READS_AT_ONCE))

    async def _write(self, choice: Choice, manifests: Mapping[Member, Manifest]) -> Decision | None:
        if choice.members:
            link = slowest_link(manifests[member].link for member in choice.members)
            decision = Decision(choice.members, None, choice.excluded, link)
            return decision if await _write(self.store, self.keys, decision, self.meter) else None
        if choice.differ:
            await refuse(self.store, self.keys, manifests, self.meter)
        else:
            await _write(self.store, self.keys, Decision({}, _explain(choice, manifests)), self.meter)
        return None


async def refuse(
    store: Store, keys: RoundKeys, members: Iterable[Member], meter: Meter, *, otherwise: str = _UNEXPLAINED
) -> None:
    """Write a decision against the round, unless there is one, saying which ranks' contributions differ in what.

    Where no difference shows, it gives the reason `otherwise`.
    """
    with contextlib.suppress(KeyNotFoundError), meter.request("download"):
        await store.get(keys.decision, length=0)
        return
    agreements: dict[int, Agreement] = {}
    damaged: dict[int, str] = {}

    async def read(member: Member) -> None:
        try:
            agreements[member.rank] = await read_when_there(store, keys.payload(member), Agreement.from_json, meter)
        except ChunkError as exc:
            damaged[member.rank] = f"what rank {member.rank} contributed cannot be read: {exc}"

    with anyio.move_on_after(_PATIENCE_S):
        await map_concurrently(read, members, limit=_READS_AT_ONCE)
    reason = explain_differences(agreements) or "; ".join(damaged.values()) or otherwise
    await _write(store, keys, Decision({}, reason), meter)


async def _write(store: Store, keys: RoundKeys, decision: Decision, meter: Meter) -> bool:
    """Write a decision unless there is one; return whether this is it."""
    with meter.request("upload"):
        return await store.put_if_absent(keys.decision, decision.to_json())


def _explain(choice: Choice, manifests: Mapping[Member, Manifest]) -> str:
    bad = {member.rank: manifests[member].non_finite for member in choice.excluded if manifests[member].non_finite}
    if not bad:
        return "; ".join(f"rank {member.rank}: {why}" for member, why in list(choice.excluded.items())[:_MOST_NAMED])
    where = ", ".join(f"rank {rank} (in {name!r})" for rank, name in sorted(bad.items())[:_MOST_NAMED])
    return (
        f"NaN or infinite values from {where}. Lower the learning rate or clip gradients on every replica; if the "
        "values are finite before they are encoded, use a wire with more range (bf16 or fp32)"
    )
