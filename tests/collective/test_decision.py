"""The round decision: whoever writes it first fixes it."""

import dataclasses

import pytest

from aiodiloco.codec import digest
from aiodiloco.collective.agreement import Agreement
from aiodiloco.collective.decision import Decision, Manifest, decide, refuse, wait_for_decision
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.meter import Meter
from aiodiloco.collective.payload import TensorSpec
from aiodiloco.errors import RoundRefusedError
from aiodiloco.store import MemoryStore

KEYS, MEMBERS = RoundKeys(3, 0), (Member(0, 0), Member(1, 2))
AGREEMENT = Agreement((TensorSpec("w", (2, 3), "float32"),), "fp32", "gather", 1024)


async def contribute(store, member, agreement, weight=1.0):
    await store.put(KEYS.payload(member), agreement.to_json())
    await store.put(KEYS.manifest(member), Manifest(1, weight, digest(agreement.to_json()).hex()).to_json())


async def test_a_decision_names_the_members_their_incarnations_and_weights():
    store = MemoryStore()
    for member, weight in zip(MEMBERS, (2.0, 0.5), strict=True):
        await contribute(store, member, AGREEMENT, weight)
    await decide(store, KEYS, MEMBERS, Meter())
    decision = await wait_for_decision(store, KEYS, Meter())
    assert decision.members == {Member(0, 0): 2.0, Member(1, 2): 0.5}


@pytest.mark.parametrize("second", [decide, refuse])
async def test_the_first_decision_stands_whoever_decides_after(second):
    store = MemoryStore()
    for member in MEMBERS:
        await contribute(store, member, AGREEMENT)
    first = Decision({Member(0, 0): 1.0})
    await store.put(KEYS.decision, first.to_json())
    await second(store, KEYS, MEMBERS, Meter())
    assert await wait_for_decision(store, KEYS, Meter()) == first


async def test_a_refusal_names_the_parameter_and_the_ranks():
    store = MemoryStore()
    await contribute(store, MEMBERS[0], AGREEMENT)
    await contribute(store, MEMBERS[1], dataclasses.replace(AGREEMENT, tensors=()))
    await decide(store, KEYS, MEMBERS, Meter())
    with pytest.raises(RoundRefusedError, match=r"round 3 .* parameter 'w' is float32 \(2, 3\) on rank 0 but missing"):
        await wait_for_decision(store, KEYS, Meter())


def test_records_survive_json():
    manifest, decision = Manifest(7, 1.5, "ab"), Decision({Member(4, 1): 3.0}, None)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Decision.from_json(decision.to_json()) == decision
    assert Agreement.from_json(AGREEMENT.to_json()) == AGREEMENT
