"""The round decision: whoever writes it first fixes it."""

import dataclasses
import json

import anyio
import pytest

from aiodiloco.codec import digest
from aiodiloco.collective.agreement import Agreement
from aiodiloco.collective.choice import Rules
from aiodiloco.collective.decider import Decider, Own, refuse
from aiodiloco.collective.decision import Decision, Manifest, read_decision, wait_for_decision
from aiodiloco.collective.documents import parse_document, seal_document
from aiodiloco.collective.keys import Member, RoundKeys
from aiodiloco.collective.meter import Meter
from aiodiloco.collective.patience import Lateness
from aiodiloco.collective.payload import TensorSpec
from aiodiloco.collective.plan import Link
from aiodiloco.errors import ChunkError, RoundRefusedError
from aiodiloco.store import MemoryStore
from aiodiloco.testing.simulation import run_in_virtual_time

KEYS, MEMBERS = RoundKeys(3, 0), (Member(0, 0), Member(1, 2))
AGREEMENT = Agreement((TensorSpec("w", (2, 3), "float32"),), "fp32", "gather", 1024)


async def decide(store, keys, members, meter, *rules_and_grace):
    rules, grace_s = rules_and_grace or (Rules(len(members)), 0.0)
    await Decider(store, keys, frozenset(members), rules, Lateness(), grace_s, meter).run()


async def contribute(store, member, agreement, weight=1.0, keys=KEYS):
    await store.put(keys.payload(member), agreement.to_json())
    await store.put(keys.manifest(member), Manifest(1, weight, digest(agreement.to_json()).hex()).to_json())


async def test_a_decision_names_the_members_their_incarnations_and_weights():
    store = MemoryStore()
    for member, weight in zip(MEMBERS, (2.0, 0.5), strict=True):
        await contribute(store, member, AGREEMENT, weight)
    await decide(store, KEYS, MEMBERS, Meter())
    decision = await wait_for_decision(store, KEYS, Meter())
    assert decision.members == {Member(0, 0): 2.0, Member(1, 2): 0.5}


async def test_a_decider_counts_its_own_contribution_but_writes_nothing_before_its_manifest_is_put():
    store, is_put, returned = MemoryStore(), anyio.Event(), []
    await contribute(store, MEMBERS[1], AGREEMENT)
    own = Own(MEMBERS[0], Manifest(1, 2.0, digest(AGREEMENT.to_json()).hex()), is_put)
    decider = Decider(store, KEYS, frozenset(MEMBERS), Rules(2), Lateness(), 0.0, Meter())

    async def run():
        returned.append(await decider.run(own))

    async with anyio.create_task_group() as tg:
        tg.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        assert await read_decision(store, KEYS, Meter()) is None
        is_put.set()
    assert returned == [Decision({Member(0, 0): 2.0, Member(1, 2): 1.0})]
    assert await read_decision(store, KEYS, Meter()) == returned[0]
    assert await decider.run(own) is None, "someone else decided: it must be read"


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


def test_a_late_member_is_left_out_and_one_that_announced_itself_is_waited_for():
    """Once enough are there and time is up; in virtual time, so that waiting costs nothing."""
    late, joiner = MEMBERS[1], Member(2, 1)

    async def main():
        store, decisions = MemoryStore(), {}
        await contribute(store, MEMBERS[0], AGREEMENT)
        async with anyio.create_task_group() as tg:
            tg.start_soon(decide, store, KEYS, MEMBERS, Meter(), Rules(1), 60.0)
            decisions["late"] = await wait_for_decision(store, KEYS, Meter())
            began = anyio.current_time()
            other = RoundKeys(4, 0)
            await contribute(store, MEMBERS[0], AGREEMENT, keys=other)
            await store.put(other.announcement(joiner), b"{}")
            tg.start_soon(decide, store, other, MEMBERS[:1], Meter(), Rules(1), 60.0)
            await anyio.sleep(30)
            await contribute(store, joiner, AGREEMENT, keys=other)
            decisions["joiner"] = await wait_for_decision(store, other, Meter())
        return decisions, began, anyio.current_time() - began

    decisions, first_s, second_s = run_in_virtual_time(main)
    assert set(decisions["late"].members) == {MEMBERS[0]}
    assert late not in decisions["late"].members
    assert 60 <= first_s < 62
    assert set(decisions["joiner"].members) == {MEMBERS[0], joiner}
    assert 30 <= second_s < 32


async def test_poison_is_excluded_by_name_where_fewer_will_do():
    store = MemoryStore()
    members = (*MEMBERS, Member(2, 0))
    for member in members:
        await contribute(store, member, AGREEMENT)
    bad = Manifest(1, 1.0, digest(AGREEMENT.to_json()).hex(), "layer.weight")
    await store.put(KEYS.manifest(members[2]), bad.to_json())
    await decide(store, KEYS, members, Meter(), Rules(2), 0.0)
    decision = await wait_for_decision(store, KEYS, Meter())
    assert set(decision.members) == set(MEMBERS)
    assert "layer.weight" in decision.excluded[members[2]]


def test_records_survive_json():
    manifest, decision = Manifest(7, 1.5, "ab", None, 2.5), Decision({Member(4, 1): 3.0}, None, {Member(3, 0): "late"})
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Decision.from_json(decision.to_json()) == decision
    manifest, decision = (dataclasses.replace(record, link=Link(0.03, 1e8)) for record in (manifest, decision))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Decision.from_json(decision.to_json()) == decision
    assert Agreement.from_json(AGREEMENT.to_json()) == AGREEMENT


def test_a_document_shows_every_flipped_bit_and_every_truncation():
    data = bytearray(Decision({Member(0, 0): 1.0}).to_json())
    assert json.loads(data)["members"] == [[0, 0, 1.0]]
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkError, match="a decision holds"):
            Decision.from_json(data)
        data[bit // 8] ^= 1 << bit % 8
    for size in range(len(data)):
        with pytest.raises(ChunkError, match="a decision holds"):
            Decision.from_json(data[:size])
    Decision.from_json(data)


def test_only_a_document_of_another_program_may_lack_the_digest_and_none_may_have_a_wrong_one():
    plain = b'{"n_replicas": 2, "policy": "quorum"}'
    with pytest.raises(ChunkError, match="digest is missing"):
        parse_document(plain, "run.json", "n_replicas")
    assert parse_document(plain, "run.json", "n_replicas", sealed=False) == {"n_replicas": 2, "policy": "quorum"}
    changed = seal_document({"n_replicas": 2}).replace(b"2", b"3", 1)
    with pytest.raises(ChunkError, match="digest is missing or wrong"):
        parse_document(changed, "run.json", "n_replicas", sealed=False)


@pytest.mark.parametrize("what", ["manifest", "payload"])
async def test_a_round_with_a_document_that_stays_damaged_is_refused_by_key_and_rank(what):
    store = MemoryStore()
    await contribute(store, MEMBERS[0], AGREEMENT)
    await contribute(store, MEMBERS[1], dataclasses.replace(AGREEMENT, wire="bf16"))
    key = getattr(KEYS, what)(MEMBERS[1])
    await store.put(key, bytes(await store.get(key)).replace(b"f", b"g", 1))
    await decide(store, KEYS, MEMBERS, Meter())
    with pytest.raises(RoundRefusedError, match=f"cannot be read: {key}, read 6 times: a .* digest is missing"):
        await wait_for_decision(store, KEYS, Meter())
