"""Ways to break the protocol on purpose: a simulation that noticed none of them would show nothing.

Each takes one promise out of the real code, in the process that asks for it. `--mutations` looks for the first seed
that notices each.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import anyio

from aiodiloco.checkpoint import save
from aiodiloco.checkpoint.layout import Part
from aiodiloco.collective import choice, decider
from aiodiloco.collective.keys import Member
from aiodiloco.collective.reduction import Reducer
from aiodiloco.diloco.diloco import DiLoCo
from aiodiloco.errors import KeyNotFoundError
from aiodiloco.lease.holder import LeaseHolder
from aiodiloco.replica.guard import LeaseGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MUTATIONS", "Mutation"]

_SPREAD = 1000


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A promise that is not kept.

    Attributes:
        what: Which, for people.
        apply: Breaks it, in this process and for good.
        known: A seed that notices.
    """

    what: str
    apply: Callable[[], None]
    known: int


def _replace(owner: object, name: str, value: object) -> Callable[[], None]:
    def apply() -> None:
        assert hasattr(owner, name), f"{owner} has no {name} any more: this mutation breaks nothing"
        setattr(owner, name, value)

    return apply


_choose = choice.choose


def _choose_processes(expected: Any, arrived: Mapping[Member, Any], rules: Any, *, is_over: bool) -> Any:
    """Choose among processes as if each were a rank of its own."""

    def apart(member: Member) -> Member:
        return Member(_SPREAD * member.rank + member.incarnation, 0)

    def together(member: Member) -> Member:
        return Member(*divmod(member.rank, _SPREAD))

    alone = {apart(member): manifest for member, manifest in arrived.items()}
    chosen = _choose({apart(member) for member in expected}, alone, rules, is_over=is_over)
    if chosen is None:
        return None
    members = {together(member): weight for member, weight in chosen.members.items()}
    excluded = {together(member): why for member, why in chosen.excluded.items()}
    return dataclasses.replace(chosen, members=members, excluded=excluded)


async def _write_decision(store: Any, keys: Any, decision: Any, meter: Any) -> None:
    with meter.request("upload"):
        await store.put(keys.decision, decision.to_json())


def _own_first(self: Any) -> list[Member]:
    members = list(self._round.members)
    return sorted(members, key=lambda member: not self._has_own(member))


async def _step_and_keep(self: Any, *, loss: Any = None, tokens: Any = None) -> None:
    if self.is_behind and not self.replays:
        await self.catch_up()
    if self.advance(loss=loss, tokens=tokens):
        await self.synchronize()
    else:
        await anyio.lowlevel.checkpoint()


async def _read_some_parts(self: Any, keys: Any, num_parts: int) -> list[Any]:
    found = []
    for number in range(num_parts):
        try:
            found.append(Part.from_json(await self.store.get(keys.part(number)), keys.part(number)))
        except KeyNotFoundError:
            continue
    return found


async def _take_the_lease(
    cls: type[LeaseHolder], /, store: Any, terms: Any, generation: int, report: Any, **_options: object
) -> LeaseHolder:
    del generation
    holder = cls(store, terms, 1, report, anyio.current_time)
    await holder.beat()
    return holder


async def _never(_: object) -> str:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


MUTATIONS = {
    "no fencing": Mutation(
        "a round may have two processes of a rank", _replace(decider, "choose", _choose_processes), known=13
    ),
    "decision not conditional": Mutation(
        "a later decision replaces an earlier one", _replace(decider, "_write", _write_decision), known=62
    ),
    "unordered reduction": Mutation(
        "each rank adds its own contribution first", _replace(Reducer, "_order_of_addition", _own_first), known=0
    ),
    "stale step kept": Mutation(
        "an inner step taken before catching up counts after it", _replace(DiLoCo, "step", _step_and_keep), known=2
    ),
    "manifest before its shards": Mutation(
        "a checkpoint is said to be whole while shares are missing",
        _replace(save._Saving, "read_parts", _read_some_parts),
        known=26,
    ),
    "lease without generations": Mutation(
        "every driver writes the same lease, and finds none newer",
        _replace(LeaseHolder, "acquire", classmethod(_take_the_lease)),
        known=1,
    ),
    "no dead man's switch": Mutation(
        "replicas do not watch the lease", _replace(LeaseGuard, "_end", _never), known=21
    ),
}  # fmt: skip
