"""`StoreManager` with torchft's own algorithms and without: real stores, a thread for each replica."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest
import torch
from torch import nn
from torch.distributed import ReduceOp

from aiodiloco import (
    ChunkError,
    FileStore,
    MemoryStore,
    ObjectStoreAllReduce,
    RoundRefusedError,
    RoundTimeoutError,
    StoreManager,
    StoreUnavailableError,
)
from aiodiloco.collective import Member
from aiodiloco.torchft import healing
from aiodiloco.torchft.state import RegisteredState, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torchft = pytest.importorskip("torchft.local_sgd", reason="torchft is not installed: it has Linux wheels only")


def _manager(path: Path, rank: int = 0, world_size: int = 1, *, timeout: float = 60, **options: object) -> StoreManager:
    arguments = {k: options.pop(k) for k in ("incarnation", "takes_over", "min_replicas", "grace") if k in options}
    all_reduce = ObjectStoreAllReduce(path, rank=rank, world_size=world_size, timeout=timeout, **arguments)
    return StoreManager(all_reduce, **options)


def _on_each_rank(world_size: int, work: Callable[[int], object]) -> list[object]:
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(work, range(world_size), timeout=100))


class _Model(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(7, 7) for _ in range(2))


def _train(manager: StoreManager, model: _Model, *, steps: int, rank: int, before: Callable[[int], None], **options):
    """Take inner steps of which each replica's differ, until the manager has committed `steps`."""
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = [torch.optim.SGD(layer.parameters(), lr=0.7, momentum=0.9, nesterov=True) for layer in model.layers]
    noise = torch.Generator().manual_seed(rank)
    with torchft.DiLoCo(manager, list(model.layers), inner, outer, sync_every=4, **options):
        while manager.current_step() < steps:
            before(manager.current_step())
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=noise)
            inner.step()
    state = manager._manager_state_dict()["user"]
    return {
        f"{key}/{name}": value.clone()
        for key, part in state.items()
        if key.startswith("Streaming")
        for name, value in part["original_parameters"].items()
    }


def _assert_equal(states: list[dict[str, torch.Tensor]]) -> None:
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert [k for k in state if not torch.equal(state[k], states[0][k])] == []


def test_torchfts_own_tests_pass_on_store_manager():
    """Its 8 tests of LocalSGD and DiLoCo, the 6 mocked updates bit for bit as its own manager has them, recovery."""
    ended = subprocess.run(
        [sys.executable, "-m", "aiodiloco.testing.torchft"], capture_output=True, text=True, timeout=110, check=False
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output[-4000:]
    on_store_manager = output.split("running torchft's tests on StoreManager")[1]
    assert "Ran 8 tests" in on_store_manager
    assert "Ran 7 tests" in on_store_manager


@pytest.mark.parametrize("options", [{}, {"fragment_sync_delay": 1}, {"use_bucketization": True}])
def test_replicas_that_begin_differently_end_with_the_same_outer_parameters(tmp_path, options):
    def work(rank: int) -> dict[str, torch.Tensor]:
        model = _Model(seed=rank)
        with _manager(tmp_path, rank, 3, load_state_dict=model.load_state_dict, state_dict=model.state_dict) as manager:
            return _train(manager, model, steps=5, rank=rank, before=lambda _: None, **options)

    states = _on_each_rank(3, work)
    _assert_equal(states)


def test_a_replica_that_was_started_again_gets_the_state_of_the_others(tmp_path):
    class DeathError(Exception):
        pass

    def die_at_3(step: int) -> None:
        if step == 3:
            raise DeathError

    def life(rank: int, incarnation: int, before: Callable[[int], None]) -> dict[str, torch.Tensor]:
        model = _Model(seed=0)
        state = {"load_state_dict": model.load_state_dict, "state_dict": model.state_dict}
        with _manager(tmp_path, rank, 2, incarnation=incarnation, takes_over=True, **state) as manager:
            return _train(manager, model, steps=6, rank=10 * incarnation + rank, before=before)

    def work(rank: int) -> dict[str, torch.Tensor]:
        if rank == 0:
            return life(0, 0, lambda _: None)
        with pytest.raises(DeathError):
            life(1, 0, die_at_3)
        return life(1, 1, lambda _: None)

    _assert_equal(_on_each_rank(2, work))


def test_local_sgd_averages_the_parameters(tmp_path):
    def work(rank: int) -> torch.Tensor:
        model = nn.Linear(3, 3, bias=False)
        nn.init.constant_(model.weight, float(rank))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model.weight.grad = torch.ones(3, 3)
        with _manager(tmp_path, rank, 2) as manager, torchft.LocalSGD(manager, model, optimizer, sync_every=2):
            optimizer.step()
            optimizer.step()
            assert manager.current_step() == 1
            assert manager.batches_committed() == 2
        return model.weight.detach()

    for weight in _on_each_rank(2, work):
        assert torch.equal(weight, torch.full((3, 3), 0.5))


@pytest.mark.parametrize("wait_after", [1, 2, 5])
def test_every_element_is_reduced_once_however_calls_and_waits_mix(tmp_path, wait_after):
    shapes = [(6,), (6,), (6,), (0,), (2, 3), (), (17,)]

    def work(rank: int) -> list[torch.Tensor]:
        tensors = [torch.full(shape, float(10 * i + rank)) for i, shape in enumerate(shapes)]
        with _manager(tmp_path, rank, 2) as manager:
            manager.start_quorum()
            for i, tensor in enumerate(tensors):
                work = manager.allreduce(tensor)
                if i % wait_after == 0:
                    assert work.wait()
            assert manager.should_commit()
        return tensors

    for tensors in _on_each_rank(2, work):
        for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            assert torch.equal(tensor, torch.full(shape, 10 * i + 0.5))


def test_sum_and_mean_may_be_asked_for_in_one_step(tmp_path):
    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean, total = torch.full((4,), float(rank)), torch.full((4,), float(rank))
        with _manager(tmp_path, rank, 3) as manager:
            manager.start_quorum()
            manager.allreduce(mean)
            manager.allreduce(total, reduce_op=ReduceOp.SUM).wait()
            assert manager.should_commit()
        return mean, total

    for mean, total in _on_each_rank(3, work):
        assert torch.equal(mean, torch.full((4,), 1.0))
        assert torch.equal(total, torch.full((4,), 3.0))


def test_futures_of_a_step_resolve_before_its_wait_returns(tmp_path):
    with _manager(tmp_path) as manager:
        manager.start_quorum()
        seen = []
        work = manager.allreduce(torch.ones(3))
        work.get_future().then(lambda future: seen.append(future.value()[0].sum().item()))
        assert not work.is_completed()
        work.wait()
        assert seen == [3.0]
        assert work.is_success()
        other = manager.allreduce(torch.ones(2))
        assert torch.equal(other.get_future().wait()[0], torch.ones(2))  # also without anybody calling wait


def test_a_callback_may_wait_for_its_own_future(tmp_path):
    with _manager(tmp_path) as manager:
        manager.start_quorum()
        seen = []
        work = manager.allreduce(torch.ones(3))
        work.get_future().then(lambda future: seen.append(future.wait()[0].sum().item()))
        work.wait()
        assert seen == [3.0]


def test_sums_of_a_step_that_is_repeated_are_sums_once(tmp_path):
    """The first group had its sums when the step failed by something else; the second had not been sent."""

    def work(rank: int) -> list[torch.Tensor]:
        with _manager(tmp_path, rank, 2) as manager:
            manager.start_quorum()
            total = torch.ones(3)
            manager.allreduce(total, reduce_op=ReduceOp.SUM).wait()
            if rank == 0:
                manager.report_error(StoreUnavailableError("elsewhere"))
                assert not manager.should_commit()
                manager.start_quorum()
                total = torch.full((3,), 50.0)
                manager.allreduce(total, reduce_op=ReduceOp.SUM).wait()
            other = torch.full((2,), float(rank))
            manager.allreduce(other).wait()
            assert manager.should_commit()
        return [total, other]

    for total, other in _on_each_rank(2, work):
        assert torch.equal(total, torch.full((3,), 2.0))
        assert torch.equal(other, torch.full((2,), 0.5))


def test_a_state_that_takes_long_to_come_is_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(healing, "_ASK_AGAIN_S", 0.2)

    class SlowStore(MemoryStore):
        async def get(self, key, **where):
            if key.startswith("torchft/state/"):
                await anyio.sleep(0.5)
            return await super().get(key, **where)

    async def main() -> tuple[int, bytes]:
        async with SlowStore() as store:
            await healing.answer(store, [], 3, b"state")
            step, data = await healing.ask(store, Member(1, 1), timeout_s=20)
            return step, bytes(data)

    assert anyio.run(main) == (3, b"state")


def test_reading_the_state_keeps_the_training_thread_out():
    state, reading, may_end = RegisteredState(), threading.Event(), threading.Event()

    def save() -> dict[str, int]:
        reading.set()
        assert may_end.wait(30)
        return {}

    state.register("mine", print, save)
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(state.read)
        assert reading.wait(30)
        blocked = pool.submit(state.disallow_read)
        assert not blocked.done()
        may_end.set()
        read.result(30)
        blocked.result(30)
    state.disallow_read()
    state.allow_read()
    state.allow_read()
    may_end.set()
    assert state.read() == {"mine": {}}


def test_a_quantized_step_sends_less(tmp_path):
    def sent(name: str, quantize: bool) -> int:
        def work(rank: int) -> int:
            with _manager(tmp_path / name, rank, 2) as manager:
                manager.start_quorum()
                manager.allreduce(torch.randn(100_000), should_quantize=quantize).wait()
                assert manager.should_commit()
                return manager._rounds.report.bytes_sent

        return max(_on_each_rank(2, work))

    assert sent("quantized", True) < 0.3 * sent("plain", False)


def test_a_failed_step_is_not_committed_and_taken_again_with_what_was_sent(tmp_path):
    """Rank 0 waits in vain for rank 1, whose tensors come later: the mean is of what rank 0 sent first."""
    with _manager(tmp_path, 0, 2, timeout=3) as first:
        first.start_quorum()
        tensor = torch.full((5,), 1.0)
        work = first.allreduce(tensor)
        with _manager(tmp_path, 1, 2) as second:
            assert work.wait()
            assert isinstance(first.errored(), RoundTimeoutError)
            assert not first.should_commit()
            assert first.current_step() == 0
            with ThreadPoolExecutor(1) as pool:

                def join_in() -> torch.Tensor:
                    second.start_quorum()
                    theirs = torch.full((5,), 3.0)
                    second.allreduce(theirs).wait()
                    assert second.should_commit()
                    return theirs

                joined = pool.submit(join_in)
                first.start_quorum()
                tensor = torch.full((5,), 100.0)
                first.allreduce(tensor).wait()
                assert first.should_commit()
                assert torch.equal(joined.result(60), torch.full((5,), 2.0))
    assert torch.equal(tensor, torch.full((5,), 2.0))


def test_an_error_of_the_training_code_keeps_the_step_from_being_committed(tmp_path):
    with _manager(tmp_path) as manager:
        manager.start_quorum()
        manager.report_error(StoreUnavailableError("the data loader's bucket"))
        untouched = torch.full((3,), 7.0)
        assert manager.allreduce(untouched).is_completed()
        assert not manager.should_commit()
        manager.start_quorum()
        assert manager.errored() is None
        manager.allreduce(untouched).wait()
        assert manager.should_commit()
        assert manager.current_step() == 1


def test_many_failures_in_a_row_raise(tmp_path):
    with _manager(tmp_path, 0, 2, timeout=0.5, max_retries=1) as manager:
        for _ in range(2):
            manager.start_quorum()
            manager.allreduce(torch.ones(2))
            if manager._commit_failures == 0:
                assert not manager.should_commit()
            else:
                with pytest.raises(RuntimeError, match="failed 2 times in a row, max_retries is 1"):
                    manager.should_commit()


def test_what_no_repetition_can_mend_raises(tmp_path):
    def work(rank: int) -> None:
        with _manager(tmp_path, rank, 2) as manager:
            manager.start_quorum()
            manager.allreduce(torch.ones(3 + rank))
            with pytest.raises(RoundRefusedError):
                manager.should_commit()

    _on_each_rank(2, work)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="give both"):
        StoreManager(ObjectStoreAllReduce(tmp_path, rank=0, world_size=1), state_dict=dict)
    with _manager(tmp_path) as manager:
        with pytest.raises(ValueError, match=r"floating point.*int64"):
            manager.allreduce(torch.ones(2, dtype=torch.int64))
        with pytest.raises(ValueError, match="AVG or SUM"):
            manager.allreduce(torch.ones(2), reduce_op=ReduceOp.MAX)
        manager.register_state_dict_fn("mine", print, dict)
        with pytest.raises(ValueError, match="'mine'"):
            manager.register_state_dict_fn("mine", print, dict)


def test_nobody_to_get_the_state_from_is_an_error_in_time(tmp_path):
    def take_a_step(rank: int) -> None:
        with _manager(tmp_path, rank, 2) as manager:
            manager.start_quorum()
            manager.allreduce(torch.ones(2))
            assert manager.should_commit()

    _on_each_rank(2, take_a_step)
    with (
        _manager(tmp_path, 1, 2, incarnation=1, takes_over=True) as alone,
        pytest.raises(RoundTimeoutError, match="rank 1 is behind the run"),
    ):
        alone.start_quorum(timeout=timedelta(seconds=0.5))


def test_a_program_that_forgets_shutdown_ends(tmp_path):
    code = (
        "import torch; from aiodiloco import ObjectStoreAllReduce, StoreManager\n"
        f"manager = StoreManager(ObjectStoreAllReduce({str(tmp_path)!r}, rank=0, world_size=1))\n"
        "manager.start_quorum(); manager.allreduce(torch.ones(2)); assert manager.should_commit(); print('done')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "done"), ended.stderr


def test_shutdown_twice_and_during_a_round(tmp_path):
    manager = _manager(tmp_path, 0, 2)
    manager.start_quorum()
    work = manager.allreduce(torch.ones(2))
    manager._rounds.send()
    manager.shutdown()
    manager.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        work.wait()


def test_state_that_came_damaged_or_cannot_be_loaded_is_refused():
    data = bytearray(pack({"user": {"weights": torch.arange(5)}, "torchft": {"step": 3}}))
    assert unpack(bytes(data), "it")["user"]["weights"].tolist() == list(range(5))
    data[100] ^= 1
    with pytest.raises(ChunkError, match="it is damaged"):
        unpack(bytes(data), "it")
    with pytest.raises(ChunkError, match="damaged"):
        unpack(b"", "it")
    with pytest.raises(ValueError, match="add_safe_globals"):
        unpack(pack({"user": {"f": functools.partial(print)}}), "it")


def test_the_state_is_deleted_when_it_is_not_needed_any_more(tmp_path):
    test_a_replica_that_was_started_again_gets_the_state_of_the_others(tmp_path)

    async def keys() -> list[str]:
        async with FileStore(tmp_path) as store:
            return [key async for key in store.list("torchft/wanted/")]

    assert anyio.run(keys) == []
