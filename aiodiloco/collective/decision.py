"""What a contribution and a round say of themselves: the documents by which a round is decided."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.meter import Meter
from aiodiloco.collective.plan import Link
from aiodiloco.collective.waiting import get_when_there, read_intact
from aiodiloco.errors import KeyNotFoundError, RoundRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiodiloco.store import Buffer, Store

__all__ = [
    "Decision",
    "Manifest",
    "is_gone",
    "is_replayable",
    "list_arrivals",
    "missing_ranks",
    "read_decision",
    "read_if_there",
    "read_when_there",
    "wait_for_decision",
]

T = TypeVar("T")

_MAX_DOCUMENT_BYTES = 64 << 20  # a payload.json has some 100 bytes per tensor


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Put last of a contribution: it is whole.

    Attributes:
        num_chunks: How many there are.
        weight: What it counts in the mean.
        agreement: Hex digest that all its chunks carry.
        non_finite: A tensor with NaN or infinite values on the wire, if there is one.
        norm: Euclidean norm of all its values, as they are on the wire; None where that is not finite.
        link: What this rank measured of its way to the store in earlier rounds, if it did.
    """

    num_chunks: int
    weight: float
    agreement: str
    non_finite: str | None = None
    norm: float | None = None
    link: Link | None = None

    def to_json(self) -> bytes:
        """Return the manifest as a document."""
        return seal_document({**vars(self), "link": _link_fields(self.link)})

    @classmethod
    def from_json(cls, data: Buffer) -> Manifest:
        """Return the manifest that `to_json` wrote. Raises ChunkError when `data` is not one."""
        fields = parse_document(data, "a manifest", "num_chunks", "weight", "agreement")
        rest = fields.get("non_finite"), fields.get("norm"), _link_from(fields.get("link"))
        return cls(fields["num_chunks"], fields["weight"], fields["agreement"], *rest)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a round: the members and their weights, or the reason why it was refused.

    Attributes:
        members: Who is in the mean, with which weight; empty if the round was refused.
        refused: Why there is no mean; None if there is one.
        excluded: Who contributed in vain, and why.
        link: The slowest of the members' ways to the store, for all of them to plan the next round by.
    """

    members: Mapping[Member, float]
    refused: str | None = None
    excluded: Mapping[Member, str] = dataclasses.field(default_factory=dict)
    link: Link | None = None

    def to_json(self) -> bytes:
        """Return the decision as a document."""
        members = [[m.rank, m.incarnation, weight] for m, weight in sorted(self.members.items())]
        excluded = [[m.rank, m.incarnation, why] for m, why in sorted(self.excluded.items())]
        fields = {"version": 1, "members": members, "refused": self.refused, "excluded": excluded}
        return seal_document({**fields, "link": _link_fields(self.link)})

    @classmethod
    def from_json(cls, data: Buffer) -> Decision:
        """Return the decision that `to_json` wrote. Raises ChunkError when `data` is not one."""
        fields = parse_document(data, "a decision", "members", "refused")
        members = {Member(rank, inc): weight for rank, inc, weight in fields["members"]}
        excluded = {Member(rank, inc): why for rank, inc, why in fields.get("excluded", ())}
        return cls(members, fields["refused"], excluded, _link_from(fields.get("link")))


def _link_fields(link: Link | None) -> dict[str, float] | None:
    return None if link is None else {"latency_s": link.latency_s, "bandwidth": link.bandwidth}


def _link_from(fields: Mapping[str, float] | None) -> Link | None:
    return None if fields is None else Link(fields["latency_s"], fields["bandwidth"])


async def read_when_there(
    store: Store, key: str, parse: Callable[[Buffer], T], meter: Meter, *, num_waiting: int = 1
) -> T:
    """Return a document, parsed, waiting for it to be written, as `num_waiting` ranks do.

    Raises:
        ChunkError: it is damaged where it lies.
    """

    async def read() -> T:
        return parse(await get_when_there(store, key, meter, at_most=_MAX_DOCUMENT_BYTES, num_waiting=num_waiting))

    return await read_intact(key, read)


async def read_if_there(store: Store, key: str, parse: Callable[[Buffer], T], meter: Meter) -> T:
    """Return a document, parsed.

    Raises:
        KeyNotFoundError: there is none.
        ChunkError: it is damaged where it lies.
    """

    async def read() -> T:
        with meter.request("download"):
            return parse(await store.get(key, length=_MAX_DOCUMENT_BYTES))

    return await read_intact(key, read)


async def read_decision(store: Store, keys: RoundKeys, meter: Meter) -> Decision | None:
    """Return the decision if there is one. Raises RoundRefusedError if it is a refusal."""
    try:
        return _unless_refused(keys, await read_if_there(store, keys.decision, Decision.from_json, meter))
    except KeyNotFoundError:
        return None


async def wait_for_decision(store: Store, keys: RoundKeys, meter: Meter, *, num_waiting: int = 1) -> Decision:
    """Return the decision once there is one, for which `num_waiting` ranks wait.

    Raises:
        RoundRefusedError: the round was refused; the same error on every rank.
        ChunkError: the decision cannot be read.
    """
    decision = await read_when_there(store, keys.decision, Decision.from_json, meter, num_waiting=num_waiting)
    return _unless_refused(keys, decision)


def _unless_refused(keys: RoundKeys, decision: Decision) -> Decision:
    if decision.refused is not None:
        raise RoundRefusedError(f"round {keys.round} of fragment {keys.fragment} was refused: {decision.refused}")
    return decision


async def is_replayable(store: Store, fragments: Iterable[int]) -> bool:
    """Return whether all rounds that were decided can still be read from the first on.

    Ranks delete what they wrote in the order of rounds, so the first round tells of all.
    """
    for fragment in fragments:
        keys = RoundKeys(0, fragment)
        decision = await read_decision(store, keys, Meter())
        if decision is not None and await is_gone(store, keys, decision):
            return False
    return True


async def is_gone(store: Store, keys: RoundKeys, decision: Decision) -> bool:
    """Return whether a contribution to a decided round was deleted, or is about to be: manifests go first."""
    whole, _ = await list_arrivals(store, keys)
    return not decision.members.keys() <= whole


async def list_arrivals(store: Store, keys: RoundKeys) -> tuple[set[Member], set[Member]]:
    """Return whose contribution to the round is whole, and who has announced one."""
    whole: set[Member] = set()
    announced: set[Member] = set()
    async for key in store.list(keys.arrivals):
        if (arrival := keys.parse_arrival(key)) is not None:
            member, is_whole = arrival
            (whole if is_whole else announced).add(member)
    return whole, announced


async def missing_ranks(store: Store, keys: RoundKeys, members: Iterable[Member]) -> list[int]:
    """Return the ranks whose contribution to the round is not whole yet, in rank order."""
    whole, _ = await list_arrivals(store, keys)
    return sorted({member.rank for member in members} - {member.rank for member in whole})
