"""What a contribution and a round say of themselves: the documents by which a round is decided."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from aiodiloco.collective.documents import parse_document
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.waiting import get_when_there
from aiodiloco.errors import KeyNotFoundError, RoundRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiodiloco.collective.meter import Meter
    from aiodiloco.store import Buffer, Store

__all__ = [
    "Decision",
    "Manifest",
    "is_replayable",
    "list_arrivals",
    "missing_ranks",
    "read_decision",
    "wait_for_decision",
]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Put last of a contribution: it is whole.

    Attributes:
        num_chunks: How many there are.
        weight: What it counts in the mean.
        agreement: Hex digest that all its chunks carry.
        non_finite: A tensor with NaN or infinite values on the wire, if there is one.
        norm: Euclidean norm of all its values, as they are on the wire.
    """

    num_chunks: int
    weight: float
    agreement: str
    non_finite: str | None = None
    norm: float | None = None

    def to_json(self) -> bytes:
        """Return the manifest as JSON."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_json(cls, data: Buffer) -> Manifest:
        """Return the manifest that `to_json` wrote. Raises ChunkError when `data` is not one."""
        fields = parse_document(data, "a manifest", "num_chunks", "weight", "agreement")
        rest = fields.get("non_finite"), fields.get("norm")
        return cls(fields["num_chunks"], fields["weight"], fields["agreement"], *rest)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a round: the members and their weights, or the reason why it was refused.

    Attributes:
        members: Who is in the mean, with which weight; empty if the round was refused.
        refused: Why there is no mean; None if there is one.
        excluded: Who contributed in vain, and why.
    """

    members: Mapping[Member, float]
    refused: str | None = None
    excluded: Mapping[Member, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the decision as JSON."""
        members = [[m.rank, m.incarnation, weight] for m, weight in sorted(self.members.items())]
        excluded = [[m.rank, m.incarnation, why] for m, why in sorted(self.excluded.items())]
        fields = {"version": 1, "members": members, "refused": self.refused, "excluded": excluded}
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: Buffer) -> Decision:
        """Return the decision that `to_json` wrote."""
        fields = parse_document(data, "a decision", "members", "refused", "excluded")
        members = {Member(rank, incarnation): weight for rank, incarnation, weight in fields["members"]}
        excluded = {Member(rank, incarnation): why for rank, incarnation, why in fields["excluded"]}
        return cls(members, fields["refused"], excluded)


async def wait_for_decision(store: Store, keys: RoundKeys, meter: Meter) -> Decision:
    """Return the decision once there is one.

    Raises:
        RoundRefusedError: the round was refused; the same error on every rank.
    """
    return _unless_refused(keys, Decision.from_json(await get_when_there(store, keys.decision, meter)))


async def read_decision(store: Store, keys: RoundKeys, meter: Meter) -> Decision | None:
    """Return the decision if there is one. Raises RoundRefusedError if it is a refusal."""
    try:
        with meter.request("download"):
            data = await store.get(keys.decision)
    except KeyNotFoundError:
        return None
    return _unless_refused(keys, Decision.from_json(data))


def _unless_refused(keys: RoundKeys, decision: Decision) -> Decision:
    if decision.refused is not None:
        raise RoundRefusedError(f"round {keys.round} of fragment {keys.fragment} was refused: {decision.refused}")
    return decision


async def is_replayable(store: Store, fragments: Iterable[int]) -> bool:
    """Return whether all rounds that were decided can still be read from the first on."""
    for fragment in fragments:
        keys = RoundKeys(0, fragment)
        try:
            decision = Decision.from_json(await store.get(keys.decision))
        except KeyNotFoundError:
            continue
        for member in sorted(decision.members)[:1]:
            try:
                await store.get(keys.payload(member), length=0)
            except KeyNotFoundError:
                return False
    return True


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
