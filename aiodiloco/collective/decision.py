"""The round decision: one object, one winner, that says who is in the round with which weight, or why there is none."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import anyio

from aiodiloco.collective.agreement import Agreement, explain_differences
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.waiting import get_when_there
from aiodiloco.errors import KeyNotFoundError, RoundRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiodiloco.collective.meter import Meter
    from aiodiloco.store import Buffer, Store

__all__ = ["Decision", "Manifest", "decide", "refuse", "wait_for_decision"]

_PATIENCE_S = 5.0  # for the payload.json of ranks that are late, before a refusal is written without them


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Put last of a contribution: it is whole. `weight` counts in the mean; `agreement` is the digest in its chunks."""

    num_chunks: int
    weight: float
    agreement: str

    def to_json(self) -> bytes:
        """Return the manifest as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: Buffer) -> Manifest:
        """Return the manifest that `to_json` wrote."""
        return cls(**json.loads(bytes(data)))


@dataclasses.dataclass(frozen=True)
class Decision:
    """What became of a round: the members and their weights, or the reason why it was refused."""

    members: Mapping[Member, float]
    refused: str | None = None

    def to_json(self) -> bytes:
        """Return the decision as JSON."""
        members = [[m.rank, m.incarnation, weight] for m, weight in sorted(self.members.items())]
        return json.dumps({"version": 1, "members": members, "refused": self.refused}).encode()

    @classmethod
    def from_json(cls, data: Buffer) -> Decision:
        """Return the decision that `to_json` wrote."""
        fields = json.loads(bytes(data))
        return cls({Member(rank, inc): weight for rank, inc, weight in fields["members"]}, fields["refused"])


async def decide(store: Store, keys: RoundKeys, members: Iterable[Member], meter: Meter) -> None:
    """Wait until every member's contribution is whole, then write the decision: all of them, or a refusal.

    Whoever calls this, and however often: the first decision stands, and all read that one.
    """
    manifests: dict[Member, Manifest] = {}
    for member in members:
        manifests[member] = Manifest.from_json(await get_when_there(store, keys.manifest(member), meter))
    if len({m.agreement for m in manifests.values()}) > 1:
        await refuse(store, keys, members, meter)
        return
    decision = Decision({member: manifest.weight for member, manifest in manifests.items()})
    with meter.request("upload"):
        await store.put_if_absent(keys.decision, decision.to_json())


async def refuse(store: Store, keys: RoundKeys, members: Iterable[Member], meter: Meter) -> None:
    """Write a decision against the round, saying which ranks' contributions differ in what."""
    agreements: dict[int, Agreement] = {}

    async def read(member: Member) -> None:
        agreements[member.rank] = Agreement.from_json(await get_when_there(store, keys.payload(member), meter))

    with anyio.move_on_after(_PATIENCE_S):
        async with anyio.create_task_group() as tg:
            for member in members:
                tg.start_soon(read, member)
    reason = explain_differences(agreements) or "contributions differ in a way their payload.json does not show"
    with meter.request("upload"):
        await store.put_if_absent(keys.decision, Decision({}, reason).to_json())


async def wait_for_decision(store: Store, keys: RoundKeys, meter: Meter) -> Decision:
    """Return the decision once there is one.

    Raises:
        RoundRefusedError: the round was refused; the same error on every rank.
    """
    decision = Decision.from_json(await get_when_there(store, keys.decision, meter))
    if decision.refused is not None:
        raise RoundRefusedError(f"round {keys.round} of fragment {keys.fragment} was refused: {decision.refused}")
    return decision


async def missing_ranks(store: Store, keys: RoundKeys, members: Iterable[Member]) -> list[int]:
    """Return the ranks whose contribution to the round is not whole yet."""
    missing = []
    for member in members:
        try:
            await store.get(keys.manifest(member), length=0)
        except KeyNotFoundError:
            missing.append(member.rank)
    return missing
