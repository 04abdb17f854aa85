"""DiLoCo as a replica sees it, over the real all-reduce."""

import copy
import io

import anyio
import pytest
import torch
from torch import nn

from aiodiloco.collective import ObjectStoreAllReduce
from aiodiloco.diloco import DiLoCo, NesterovSGD
from aiodiloco.diloco.checkpoints import Checkpoints
from aiodiloco.errors import CheckpointError, RoundRefusedError, RoundTimeoutError
from aiodiloco.store import MemoryStore
from aiodiloco.testing.cancellation import cancel_at_every_step
from tests.collective.ranks import on_all, open_ranks
from tests.diloco.models import TrainingReplica, make_batch, make_model, train_step


async def run_replicas(world_size, total, *, store=None, reduce_options=None, **options):
    async with open_ranks(store or MemoryStore(), world_size, **(reduce_options or {})) as ranks:
        replicas = [TrainingReplica(r, rank=r.rank, **options) for r in ranks]
        outcomes = await on_all(ranks, lambda r: replicas[r.rank].train(total))
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return replicas


async def test_one_replica_synchronising_every_step_by_plain_averaging_is_plain_training():
    """θ - (θ - θ') is θ' but for the rounding of one subtraction: in float64, 1e-12 after 30 steps."""
    plain = make_model(dtype=torch.float64)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for step in range(30):
        train_step(plain, optimizer, 0, step)

    model = make_model(dtype=torch.float64)
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as all_reduce:
        diloco = DiLoCo(model, inner, all_reduce, sync_every=1, outer=NesterovSGD(lr=1.0, momentum=0.0))
        for step in diloco.steps(30):
            await diloco.step(loss=train_step(model, inner, 0, step))
    assert diloco.round == 30
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8", "e3m0"])
async def test_all_replicas_hold_the_same_bits_after_every_round(algorithm, wire):
    bits = {}

    class Watched(TrainingReplica):
        async def train(self, total):
            for step in self.diloco.steps(total):
                await self.diloco.step(loss=train_step(self.model, self.inner, self.rank, step))
                if self.diloco.inner_step % 5 == 0:
                    bits.setdefault(self.diloco.round, set()).add(self.bits())

    async with open_ranks(MemoryStore(), 3, algorithm=algorithm, chunk_bytes=1) as ranks:
        replicas = [Watched(r, rank=r.rank, sync_every=5, wire=wire) for r in ranks]
        await on_all(ranks, lambda r: replicas[r.rank].train(20))
    assert {number: len(versions) for number, versions in bits.items()} == {1: 1, 2: 1, 3: 1, 4: 1}
    assert len(set.union(*bits.values())) == 4


async def test_the_first_round_is_the_papers_formula():
    """θ₁ = θ₀ - lr·(1 + μ)·mean(θ₀ - θᵢ): the first Nesterov step."""
    initial, locals_ = make_model(), []
    for rank in range(2):
        model = copy.deepcopy(initial)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(4):
            train_step(model, optimizer, rank, step)
        locals_.append(model)
    (first, _) = await run_replicas(2, 4, sync_every=4, outer=NesterovSGD(lr=0.7, momentum=0.9))
    triples = zip(initial.parameters(), *(m.parameters() for m in locals_), first.model.parameters(), strict=True)
    for before, a, b, after in triples:
        delta = ((before - a) + (before - b)) / 2
        torch.testing.assert_close(after, before - 0.7 * 1.9 * delta, rtol=1e-6, atol=1e-7)


async def test_training_with_diloco_lowers_the_loss_on_everyones_data():
    replicas = await run_replicas(3, 60, sync_every=10, wire="bf16")
    before, after = make_model(), replicas[0].model
    for rank in range(3):
        x, y = make_batch(rank, 999)
        assert nn.functional.mse_loss(after(x), y) < 0.5 * nn.functional.mse_loss(before(x), y)


@pytest.mark.parametrize(("total", "rounds"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (10, 3)])
async def test_steps_are_exact_and_the_last_round_may_be_short(total, rounds):
    (replica,) = await run_replicas(1, total, sync_every=4)
    assert replica.diloco.inner_step == total
    assert replica.diloco.round == rounds
    assert list(replica.diloco.steps(total)) == []


@pytest.mark.parametrize("calls", [0, 2])
async def test_an_iteration_without_exactly_one_step_is_an_error(calls):
    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as all_reduce:
        diloco = TrainingReplica(all_reduce, sync_every=100).diloco
        with pytest.raises(RuntimeError, match=f"step\\(\\) was called {calls} times in iteration 0"):
            for _ in diloco.steps(3):
                for _ in range(calls):
                    await diloco.step()


async def test_outer_weights_hold_the_last_rounds_parameters_and_give_the_local_ones_back():
    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as all_reduce:
        replica = TrainingReplica(all_reduce, sync_every=4)
        await replica.train(10, stop=4)
        after_round = replica.bits()
        await replica.train(10, stop=6)
        local = replica.bits()
        assert local != after_round
        with pytest.raises(ZeroDivisionError), replica.diloco.outer_weights() as model:
            assert model is replica.model
            assert replica.bits() == after_round
            with pytest.raises(RuntimeError, match="leave the evaluation"):
                await replica.diloco.step()
            _ = 1 / 0
        assert replica.bits() == local
        await replica.train(10)


@pytest.mark.parametrize("stop", [4, 6], ids=["after a round", "within a round"])
async def test_a_saved_and_resumed_run_continues_to_the_bit(stop):
    whole = await run_replicas(2, 12, sync_every=4, wire="int8")
    saved = []
    async with open_ranks(MemoryStore(), 2, wire="int8") as ranks:
        replicas = [TrainingReplica(r, rank=r.rank, sync_every=4) for r in ranks]
        await on_all(ranks, lambda r: replicas[r.rank].train(12, stop=stop))
        for replica in replicas:
            saved.append(io.BytesIO())
            torch.save(replica.diloco.state_dict(), saved[-1])
    async with open_ranks(MemoryStore(), 2, wire="int8") as ranks:
        resumed = [TrainingReplica(r, rank=r.rank, sync_every=4) for r in ranks]
        for replica, file in zip(resumed, saved, strict=True):
            file.seek(0)
            replica.diloco.load_state_dict(torch.load(file, weights_only=True))
            if stop == 4:
                await replica.diloco.synchronize()  # nothing new since the saved round: no round
                assert replica.diloco.round == 1
        await on_all(ranks, lambda r: resumed[r.rank].train(12))
    assert [r.bits() for r in resumed] == [r.bits() for r in whole]
    assert resumed[0].diloco.round == 3


async def test_replicas_that_begin_from_different_parameters_are_refused_by_rank():
    async with open_ranks(MemoryStore(), 3) as ranks:
        replicas = [TrainingReplica(r, rank=r.rank, sync_every=2) for r in ranks]
        replicas[1].model.load_state_dict(make_model(seed=7).state_dict())
        odd = DiLoCo(replicas[1].model, replicas[1].inner, ranks[1], sync_every=2)
        replicas[1].diloco = odd
        errors = await on_all(ranks, lambda r: replicas[r.rank].train(2))
    assert all(isinstance(e, RoundRefusedError) for e in errors)
    assert all("different parameters (ranks 0, 2 / rank 1)" in str(e) for e in errors)


async def test_a_round_that_failed_can_be_repeated_and_is_applied_once():
    (undisturbed, _) = await run_replicas(2, 8, sync_every=4)
    async with open_ranks(MemoryStore(), 2) as ranks:
        replicas = [TrainingReplica(r, rank=r.rank, sync_every=4) for r in ranks]
        ranks[0]._timeout = 0.2  # rank 1 comes later than that
        with pytest.raises(RoundTimeoutError, match=r"missing the contributions of ranks \[1\]"):
            await replicas[0].train(8)
        assert (replicas[0].diloco.inner_step, replicas[0].diloco.round) == (4, 0)
        ranks[0]._timeout = 30.0
        async with anyio.create_task_group() as tg:
            tg.start_soon(replicas[1].train, 8)
            await replicas[0].diloco.synchronize()
            await replicas[0].diloco.synchronize()  # nothing new to synchronise: no second round
            await replicas[0].train(8)
    assert replicas[0].bits() == undisturbed.bits()
    assert replicas[0].diloco.round == 2


async def test_frozen_parameters_stay_local_and_tied_ones_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    models = [Tied(), Tied()]
    models[1].load_state_dict(models[0].state_dict())
    async with open_ranks(MemoryStore(), 2) as ranks:

        async def train(rank):
            model = models[rank.rank]
            diloco = DiLoCo(model, torch.optim.SGD(model.parameters(), lr=0.1), rank, sync_every=1)
            with torch.no_grad():
                model.embed.weight += 1 + rank.rank
                model.frozen += rank.rank
            await diloco.step()
            return rank.rank

        assert await on_all(ranks, train) == [0, 1]
    assert models[0].head.weight is models[0].embed.weight
    assert torch.equal(models[0].embed.weight, models[1].embed.weight)
    assert [m.frozen.tolist() for m in models] == [[1, 1], [2, 2]]


async def test_every_step_and_round_is_an_event():
    seen = []
    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as all_reduce:
        replica = TrainingReplica(all_reduce, sync_every=2, emit=lambda kind, **data: seen.append((kind, data)))
        await replica.train(3)
    assert [kind for kind, _ in seen] == ["step", "step", "round", "step", "round"]
    assert {"step", "round", "loss", "tokens", "tokens_per_s"} <= seen[0][1].keys()
    assert [data["tokens"] for kind, data in seen if kind == "step"] == [8, 16, 24]
    assert [(data["round"], data["step"]) for kind, data in seen if kind == "round"] == [(0, 2), (1, 3)]
    assert replica.diloco.bytes_sent == sum(data["bytes_sent"] for kind, data in seen if kind == "round")


@pytest.mark.parametrize("sync_every", [0, -5, 2.5, True, None])
def test_sync_every_must_be_a_positive_int(sync_every):
    model = make_model()
    with pytest.raises(ValueError, match=f"sync_every must be an int >= 1 .*not {sync_every!r}"):
        DiLoCo(model, torch.optim.SGD(model.parameters()), None, sync_every=sync_every)


@pytest.mark.parametrize("total", [-1, 1.5, "10"])
def test_a_number_of_steps_that_cannot_be_is_refused_before_the_first(total):
    model = make_model()
    diloco = DiLoCo(model, torch.optim.SGD(model.parameters()), None, sync_every=1)
    with pytest.raises(ValueError, match=r"steps\(\) takes the number of inner steps of the whole run"):
        diloco.steps(total)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="holds none of the model's trainable parameters"):
        DiLoCo(make_model(), torch.optim.SGD(make_model().parameters()), None, sync_every=1)
    with pytest.raises(TypeError, match=r"inner_optimizer must be a torch.optim.Optimizer, not a Sequential"):
        DiLoCo(make_model(), make_model(), None, sync_every=1)
    with pytest.raises(ValueError, match="nothing to train"):
        DiLoCo(make_model().requires_grad_(False), torch.optim.SGD(make_model().parameters()), None, sync_every=1)


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancelled_at_any_await_a_round_can_be_repeated_and_is_applied_once(how):
    async with (
        ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as disturbed_transport,
        ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as transport,
    ):
        disturbed = TrainingReplica(disturbed_transport, sync_every=1000)
        undisturbed = TrainingReplica(transport, sync_every=1000)

        def take_inner_steps():
            for replica in (disturbed, undisturbed):
                for _ in range(2):
                    train_step(replica.model, replica.inner, 0, replica.diloco.inner_step)
                    replica.diloco.advance()

        async def repeat(_):
            await disturbed.diloco.synchronize()
            await undisturbed.diloco.synchronize()
            assert disturbed.diloco.round == undisturbed.diloco.round
            assert disturbed.bits() == undisturbed.bits()
            take_inner_steps()

        take_inner_steps()
        steps = await cancel_at_every_step(disturbed.diloco.synchronize, repeat, how=how)
    assert steps > 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
async def test_many_small_outer_steps_add_up_also_in_half_precision(dtype):
    """One rank moves a bf16 ulp a round and the other stands still: the outer parameter moves half an ulp a round."""
    async with open_ranks(MemoryStore(), 2) as ranks:

        async def train(rank):
            model = nn.Linear(1, 1, bias=False, dtype=dtype)
            with torch.no_grad():
                model.weight.fill_(1.0)
            inner = torch.optim.SGD(model.parameters(), lr=0.1)
            diloco = DiLoCo(model, inner, rank, sync_every=1, outer=NesterovSGD(lr=1.0, momentum=0.0))
            for _ in diloco.steps(20):
                if rank.rank == 0:
                    with torch.no_grad():
                        model.weight += 2**-7
                await diloco.step()
            return diloco._outer.parameters["weight"].item()

        assert await on_all(ranks, train) == [1 + 20 * 2**-8] * 2


async def test_settings_that_would_make_replicas_diverge_are_refused_by_name():
    cases = [
        ({"sync_every": 2}, {"sync_every": 4}, "sync_every is 2 on rank 0 but 4 on rank 1"),
        ({"outer": NesterovSGD(lr=0.7)}, {"outer": NesterovSGD(lr=0.1)}, "the outer optimizer is SGD"),
        ({"total": 5}, {"total": 6}, "the inner step of the round is 5 on rank 0 but 6 on rank 1"),
    ]
    for first, second, message in cases:
        options = [{"sync_every": 100 if "total" in first else 2, "total": 8} | case for case in (first, second)]
        totals = [option.pop("total") for option in options]
        async with open_ranks(MemoryStore(), 2) as ranks:
            replicas = [TrainingReplica(r, rank=r.rank, **options[r.rank]) for r in ranks]
            errors = await on_all(
                ranks, lambda r, replicas=replicas, totals=totals: replicas[r.rank].train(totals[r.rank])
            )
        assert all(isinstance(e, RoundRefusedError) and message in str(e) for e in errors), errors


async def test_a_run_that_goes_back_under_its_prefix_is_refused():
    async with open_ranks(MemoryStore(), 1) as (rank,):
        replica = TrainingReplica(rank, sync_every=2)
        start = copy.deepcopy(replica.diloco.state_dict())
        await replica.train(4)
        replica.diloco.load_state_dict(start)
        with pytest.raises(ValueError, match="to go back to an earlier state, start a new run under a new prefix"):
            await replica.train(4)


async def test_training_on_after_a_failed_round_is_refused_until_it_is_repeated():
    async with open_ranks(MemoryStore(), 2) as (rank, _):
        replica = TrainingReplica(rank, sync_every=1)
        rank._timeout = 0.1
        with pytest.raises(RoundTimeoutError):
            await replica.train(3)
        with pytest.raises(RuntimeError, match=r"round 0 is incomplete: repeat it with synchronize\(\)"):
            await replica.diloco.step()


async def test_outer_weights_refuses_what_would_lose_the_local_ones():
    async with open_ranks(MemoryStore(), 1) as (rank,):
        replica = TrainingReplica(rank, sync_every=10)
        await replica.train(10, stop=3)
        with replica.diloco.outer_weights():
            with pytest.raises(RuntimeError, match=r"synchronize\(\) inside outer_weights"):
                await replica.diloco.synchronize()
            with pytest.raises(RuntimeError, match=r"state_dict\(\) inside outer_weights"):
                replica.diloco.state_dict()
            with (
                pytest.raises(RuntimeError, match=r"outer_weights\(\) inside outer_weights"),
                replica.diloco.outer_weights(),
            ):
                pass
        await replica.train(10)


def other_shape(state):
    state["model"]["0.weight"] = torch.zeros(2, 2)


def other_outer_optimizer(state):
    state["outer"]["optimizer"]["param_groups"][0]["params"].pop()


def other_inner_optimizer(state):
    state["inner_optimizer"]["param_groups"][0]["params"].pop()


def no_counter(state):
    del state["synced_at"]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (other_shape, r"saved model does not fit this model: parameter '0.weight' is \(2, 2\)"),
        (other_outer_optimizer, r"state of the outer optimizer does not fit: its groups hold \[3\] .* and \[4\] here"),
        (other_inner_optimizer, r"state of the inner optimizer does not fit: its groups hold \[3\] .* and \[4\] here"),
        (no_counter, r"the saved state lacks 'synced_at'"),
    ],
)
async def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded(spoil, match):
    async with open_ranks(MemoryStore(), 1) as (rank,):
        replica = TrainingReplica(rank, sync_every=2)
        await replica.train(4)
        state = copy.deepcopy(replica.diloco.state_dict())
        await replica.train(8)
        before, moments = replica.bits(), copy.deepcopy(replica.inner.state_dict())
        spoil(state)
        with pytest.raises(ValueError, match=match):
            replica.diloco.load_state_dict(state)
        assert replica.bits() == before
        assert replica.diloco.inner_step == 8
        assert str(replica.inner.state_dict()) == str(moments)


async def test_a_step_that_waits_for_nothing_gives_others_a_turn():
    """Training fills the event loop: without this no heartbeat is sent, and no checkpoint written, until a round."""
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as all_reduce, anyio.create_task_group() as tg:
        tg.start_soon(count)
        await TrainingReplica(all_reduce, sync_every=1000).train(1000, stop=10)
        assert turns >= 9
        tg.cancel_scope.cancel()


async def no_checkpoint():
    raise CheckpointError("there is none")


async def test_a_share_of_a_checkpoint_is_handed_over_by_the_next_call_after_a_cancellation():
    """Also where that call finds nothing else to do: after the last round there is no later one."""
    saved, is_busy = [], True

    async def save(share):
        if is_busy:
            await anyio.sleep_forever()
        saved.append(share.round)

    async with ObjectStoreAllReduce(MemoryStore(), rank=0, world_size=1) as all_reduce:
        plan = Checkpoints(1, 0, 0, save, no_checkpoint)
        replica = TrainingReplica(all_reduce, sync_every=1000, checkpoints=plan)
        replica.diloco.advance()
        with anyio.move_on_after(0.5):
            await replica.diloco.synchronize()
        assert (replica.diloco.round, saved) == (1, [])
        is_busy = False
        await replica.diloco.synchronize()
    assert saved == [1]


async def test_a_replica_that_comes_back_after_the_last_round_still_writes_its_share_of_it():
    """Whoever died before it had written left a checkpoint that only its rank can complete."""
    saved, store = [], MemoryStore()

    async def save(share):
        saved.append(share.round)

    async with ObjectStoreAllReduce(store, rank=0, world_size=1) as all_reduce:
        all_reduce.keep_from(0)
        await TrainingReplica(all_reduce, sync_every=5).train(10)
    async with ObjectStoreAllReduce(store, rank=0, world_size=1, incarnation=1, takes_over=True) as all_reduce:
        plan = Checkpoints(1, 0, 0, save, no_checkpoint)
        await TrainingReplica(all_reduce, sync_every=5, checkpoints=plan).diloco.catch_up()
    assert saved == [2]
