"""The round decision: one object, one winner, that says who is in the round with which weight, or why there is none."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, TypeVar

import anyio

from aiodiloco.collective.agreement import Agreement, explain_differences
from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.plan import Link, slowest_link
from aiodiloco.collective.waiting import get_when_there, read_intact
from aiodiloco.errors import ChunkError, KeyNotFoundError, RoundRefusedError
from aiodiloco.store.fan_out import map_concurrently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiodiloco.collective.meter import Meter
    from aiodiloco.store import Buffer, Store

__all__ = ["Decision", "Manifest", "decide", "missing_ranks", "refuse", "wait_for_decision"]

T = TypeVar("T")

_READS_AT_ONCE = 32  # of manifests: small objects, so latency is all they cost
_MOST_NAMED = 5
_MAX_DOCUMENT_BYTES = 64 << 20  # a payload.json has some 100 bytes per tensor
_UNEXPLAINED = "contributions differ in a way their payload.json does not show"
_PATIENCE_S = 5.0  # for the payload.json of ranks that are late, before a refusal is written without them


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Put last of a contribution: it is whole.

    Attributes:
        num_chunks: How many there are.
        weight: What it counts in the mean.
        agreement: Hex digest that all its chunks carry.
        non_finite: A tensor with NaN or infinite values on the wire, if there is one.
        link: What this rank measured of its way to the store in earlier rounds, if it did.
    """

    num_chunks: int
    weight: float
    agreement: str
    non_finite: str | None = None
    link: Link | None = None

    def to_json(self) -> bytes:
        """Return the manifest as a document."""
        return seal_document({**vars(self), "link": _link_fields(self.link)})

    @classmethod
    def from_json(cls, data: Buffer) -> Manifest:
        """Return the manifest that `to_json` wrote. Raises ChunkError when `data` is not one."""
        fields = parse_document(data, "a manifest", "num_chunks", "weight", "agreement")
        link = _link_from(fields.get("link"))
        return cls(fields["num_chunks"], fields["weight"], fields["agreement"], fields.get("non_finite"), link)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a round: the members and their weights, or the reason why it was refused.

    `link` is the slowest of the members' ways to the store, for all of them to plan the next round by.
    """

    members: Mapping[Member, float]
    refused: str | None = None
    link: Link | None = None

    def to_json(self) -> bytes:
        """Return the decision as a document."""
        members = [[m.rank, m.incarnation, weight] for m, weight in sorted(self.members.items())]
        link = _link_fields(self.link)
        return seal_document({"version": 1, "members": members, "refused": self.refused, "link": link})

    @classmethod
    def from_json(cls, data: Buffer) -> Decision:
        """Return the decision that `to_json` wrote. Raises ChunkError when `data` is not one."""
        fields = parse_document(data, "a decision", "members", "refused")
        members = {Member(rank, inc): weight for rank, inc, weight in fields["members"]}
        return cls(members, fields["refused"], _link_from(fields.get("link")))


def _link_fields(link: Link | None) -> dict[str, float] | None:
    return None if link is None else {"latency_s": link.latency_s, "bandwidth": link.bandwidth}


def _link_from(fields: Mapping[str, float] | None) -> Link | None:
    return None if fields is None else Link(fields["latency_s"], fields["bandwidth"])


async def decide(store: Store, keys: RoundKeys, members: Iterable[Member], meter: Meter) -> None:
    """Wait until every member's contribution is whole, then write the decision: all of them, or a refusal.

    Whoever calls this, and however often: the first decision stands, and all read that one.
    """

    async def read(member: Member) -> tuple[Member, Manifest]:
        return member, await _read_when_there(store, keys.manifest(member), Manifest.from_json, meter)

    try:
        manifests = dict(await map_concurrently(read, members, limit=_READS_AT_ONCE))
    except ChunkError as exc:
        await _write(store, keys, Decision({}, f"a manifest cannot be read: {exc}"), meter)
        return
    if len({m.agreement for m in manifests.values()}) > 1:
        await refuse(store, keys, members, meter)
    elif bad := {member.rank: m.non_finite for member, m in manifests.items() if m.non_finite}:
        await _write(store, keys, Decision({}, _explain_non_finite(bad)), meter)
    else:
        weights = {member: m.weight for member, m in manifests.items()}
        await _write(store, keys, Decision(weights, link=slowest_link(m.link for m in manifests.values())), meter)


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
            agreements[member.rank] = await _read_when_there(store, keys.payload(member), Agreement.from_json, meter)
        except ChunkError as exc:
            damaged[member.rank] = f"what rank {member.rank} contributed cannot be read: {exc}"

    with anyio.move_on_after(_PATIENCE_S):
        await map_concurrently(read, members, limit=_READS_AT_ONCE)
    reason = explain_differences(agreements) or "; ".join(damaged.values()) or otherwise
    await _write(store, keys, Decision({}, reason), meter)


async def _read_when_there(store: Store, key: str, parse: Callable[[Buffer], T], meter: Meter) -> T:
    async def read() -> T:
        return parse(await get_when_there(store, key, meter, at_most=_MAX_DOCUMENT_BYTES))

    return await read_intact(key, read)


async def _write(store: Store, keys: RoundKeys, decision: Decision, meter: Meter) -> None:
    with meter.request("upload"):
        await store.put_if_absent(keys.decision, decision.to_json())


def _explain_non_finite(tensors: Mapping[int, str]) -> str:
    where = ", ".join(f"rank {rank} (in {name!r})" for rank, name in sorted(tensors.items())[:_MOST_NAMED])
    return (
        f"NaN or infinite values from {where}. Lower the learning rate or clip gradients on every replica; if the "
        "values are finite before they are encoded, use a wire with more range (bf16 or fp32)"
    )


async def wait_for_decision(store: Store, keys: RoundKeys, meter: Meter) -> Decision:
    """Return the decision once there is one.

    Raises:
        RoundRefusedError: the round was refused; the same error on every rank.
        ChunkError: the decision cannot be read.
    """
    decision = await _read_when_there(store, keys.decision, Decision.from_json, meter)
    if decision.refused is not None:
        raise RoundRefusedError(f"round {keys.round} of fragment {keys.fragment} was refused: {decision.refused}")
    return decision


async def missing_ranks(store: Store, keys: RoundKeys, members: Iterable[Member]) -> list[int]:
    """Return the ranks whose contribution to the round is not whole yet, in rank order."""

    async def is_missing(member: Member) -> tuple[int, bool]:
        try:
            await store.get(keys.manifest(member), length=0)
        except KeyNotFoundError:
            return member.rank, True
        return member.rank, False

    looked = await map_concurrently(is_missing, members, limit=_READS_AT_ONCE)
    return [rank for rank, missing in looked if missing]
