"""Joining a run from inside a replica: async and sync, and what the event log keeps of it."""

import contextlib
import logging
import os
import signal
import threading
import warnings

import anyio
import pytest
import torch

from aiodiloco.errors import RankTakenError, WorldSizeError
from aiodiloco.events import read_events
from aiodiloco.replica import join, join_sync
from aiodiloco.store import open_store
from tests.diloco.models import make_model, train_step


async def events_of(uri, *kinds):
    async with open_store(uri) as store:
        events, _ = await read_events(store)
    return [event for event in events if event.kind in kinds]


async def train_async(uri, rank, world_size, total):
    async with join(uri, rank=rank, world_size=world_size) as replica:
        model = make_model()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        diloco = replica.diloco(model, inner, sync_every=4, wire="bf16")
        for step in diloco.steps(total):
            loss = await anyio.to_thread.run_sync(train_step, model, inner, rank, step)
            await diloco.step(loss=loss, tokens=8)
    return [p.tolist() for p in model.parameters()]


def train_sync(uri, rank, world_size, total):
    with join_sync(uri, rank=rank, world_size=world_size) as replica:
        assert (replica.rank, replica.world_size) == (rank, world_size)
        model = make_model()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        diloco = replica.diloco(model, inner, sync_every=4, wire="bf16")
        for step in diloco.steps(total):
            diloco.step(loss=train_step(model, inner, rank, step), tokens=8)
        with diloco.outer_weights():
            weights = [p.tolist() for p in model.parameters()]
        assert (diloco.inner_step, diloco.round, diloco.last_round.round) == (total, 3, 2)
        assert diloco.bytes_sent > 0
        assert diloco.bytes_received > 0
    return weights


async def in_parallel(*calls):
    results = [None] * len(calls)

    async def run(index, call):
        results[index] = await call()

    async with anyio.create_task_group() as tg:
        for index, call in enumerate(calls):
            tg.start_soon(run, index, call)
    return results


async def test_sync_and_async_replicas_train_together_and_alike(tmp_path):
    """The sync face runs the same code: one of each in a run agree to the bit, as do two runs of one kind each."""

    def as_thread(uri, rank):
        return lambda: anyio.to_thread.run_sync(train_sync, uri, rank, 2, 10)

    def as_task(uri, rank):
        return lambda: train_async(uri, rank, 2, 10)

    runs = {"tasks": (as_task, as_task), "threads": (as_thread, as_thread), "mixed": (as_thread, as_task)}
    finals = []
    for name, kinds in runs.items():
        finals += await in_parallel(*(kind(tmp_path / name, rank) for rank, kind in enumerate(kinds)))
    assert all(final == finals[0] for final in finals)


async def test_the_event_log_tells_the_whole_story_of_a_replica(tmp_path):
    await train_async(tmp_path, 0, 1, 10)
    steps = await events_of(tmp_path, "step")
    assert [e.data["step"] for e in steps] == list(range(1, 11))
    assert all(isinstance(e.data["loss"], float) and e.data["tokens_per_s"] > 0 for e in steps)
    rounds = await events_of(tmp_path, "round")
    assert [e.data["num_members"] for e in rounds] == [1] * 3
    assert {"encode", "upload", "wait", "download", "reduce", "apply", "total"} == rounds[0].data["seconds"].keys()
    joined, left = await events_of(tmp_path, "joined", "left")
    assert (joined.writer, joined.data["world_size"], left.data["error"]) == ("0-0", 1, None)


async def test_reports_and_log_lines_of_a_replica_are_events(tmp_path):
    async with join(tmp_path, rank=0, world_size=1) as replica:
        replica.report(3, accuracy=torch.tensor(0.5), note="warm")
        logging.getLogger("my.training").warning("learning rate is %s", 0.1)
        threading.Thread(target=logging.getLogger("my.data").error, args=("no shard",)).start()
        try:
            raise KeyError("batch")
        except KeyError:
            logging.getLogger("my.training").exception("skipped")
    logging.getLogger("my.training").warning("after leaving")
    (metrics,) = await events_of(tmp_path, "metrics")
    assert metrics.data == {"step": 3, "accuracy": 0.5, "note": "warm"}
    logs = {e.data["message"].splitlines()[0]: e.data for e in await events_of(tmp_path, "log")}
    assert logs.keys() == {"learning rate is 0.1", "no shard", "skipped"}
    assert logs["no shard"]["level"] == "ERROR"
    assert "KeyError: 'batch'" in logs["skipped"]["message"]


async def test_what_the_training_raises_comes_out_as_it_is_and_is_logged(tmp_path):
    with pytest.raises(ZeroDivisionError):
        async with join(tmp_path / "async", rank=0, world_size=1):
            _ = 1 / 0

    def fail():
        with join_sync(tmp_path / "sync", rank=0, world_size=1):
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await anyio.to_thread.run_sync(fail)
    for way in ("async", "sync"):
        (left,) = await events_of(tmp_path / way, "left")
        assert left.data["error"] == "ZeroDivisionError: division by zero"


async def test_a_cancelled_replica_leaves_word_and_no_task_behind(tmp_path):
    async with anyio.create_task_group() as tg:

        async def stay():
            async with join(tmp_path, rank=0, world_size=1):
                tg.cancel_scope.cancel()
                await anyio.sleep_forever()

        tg.start_soon(stay)
    (left,) = await events_of(tmp_path, "left")
    assert left.data["error"].startswith("CancelledError")


def test_the_network_thread_ends_with_the_context(tmp_path):
    with join_sync(tmp_path, rank=0, world_size=1) as replica:
        assert any(t.name == "aiodiloco-network" for t in threading.enumerate())
        tensors = {"w": torch.tensor([3.0])}
        assert replica.all_reduce(tensors).members[0].rank == 0
    assert not any(t.name == "aiodiloco-network" for t in threading.enumerate())


async def test_a_wrong_world_size_or_a_rank_twice_is_an_error_of_join(tmp_path):
    async with join(tmp_path, rank=0, world_size=2):
        with pytest.raises(WorldSizeError):
            async with join(tmp_path, rank=1, world_size=3):
                pass
        with pytest.raises(RankTakenError):
            async with join(tmp_path, rank=0, world_size=2):
                pass


@pytest.mark.parametrize(("option", "value"), [("fragments", 2), ("delay", 1), ("mix", 0.5)])
async def test_streaming_options_of_a_later_release_are_refused_by_name(tmp_path, option, value):
    async with join(tmp_path, rank=0, world_size=1) as replica:
        model = make_model()
        with pytest.raises(ValueError, match=f"{option}={value}: this release synchronises the model whole"):
            replica.diloco(model, torch.optim.SGD(model.parameters()), sync_every=1, **{option: value})


async def test_ones_own_averages_and_several_models_have_rounds_of_their_own(tmp_path):
    async def train(rank):
        async with join(tmp_path, rank=rank, world_size=2) as replica:
            models = [make_model(), make_model(seed=1)]
            inners = [torch.optim.SGD(m.parameters(), lr=0.01) for m in models]
            dilocos = [replica.diloco(m, i, sync_every=1) for m, i in zip(models, inners, strict=True)]
            for number in range(3):
                for diloco in dilocos:
                    await diloco.step()
                loss = {"loss": torch.tensor([float(rank + number)])}
                await replica.all_reduce(loss)
                assert loss["loss"].item() == number + 0.5
            return [d.round for d in dilocos]

    assert await in_parallel(lambda: train(0), lambda: train(1)) == [[3, 3], [3, 3]]


def test_an_interrupted_synchronize_ends_its_round_and_can_be_repeated(tmp_path):
    """As Ctrl-C does: KeyboardInterrupt in the training thread while it waits for a peer."""
    with join_sync(tmp_path, rank=0, world_size=2) as replica:
        model = make_model()
        diloco = replica.diloco(model, torch.optim.SGD(model.parameters(), lr=0.1), sync_every=1)
        for _ in range(2):  # the second waits on as the first did, not "still running"
            with pytest.raises(KeyboardInterrupt), interrupt_after(0.3):
                diloco.step() if diloco.inner_step == 0 else diloco.synchronize()
        before = [p.tolist() for p in model.parameters()]
        assert [p.tolist() for p in model.parameters()] == before
        assert diloco.round == 0


@contextlib.contextmanager
def interrupt_after(seconds):
    timer = threading.Timer(seconds, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()  # what came first is the outcome: a late interruption would hide another error
        timer.join()


def test_a_forked_child_is_told_to_join_itself(tmp_path):
    with join_sync(tmp_path, rank=0, world_size=1) as replica:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
            pid = os.fork()
        if pid == 0:
            try:
                replica.all_reduce({"w": torch.ones(1)})
            except RuntimeError as exc:
                os._exit(42 if "join in the child" in str(exc) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
async def test_what_join_is_told_of_the_all_reduce_reaches_it(algorithm):
    uri = f"memory://options-{algorithm}"
    options = {"world_size": 2, "algorithm": algorithm, "chunk_bytes": 4096, "log_capture": False}
    reports = []

    async def reduce(rank):
        async with join(uri, rank=rank, **options) as replica:
            reports.append(await replica.all_reduce({"w": torch.ones(4096)}))

    async with anyio.create_task_group() as tg:
        tg.start_soon(reduce, 0)
        tg.start_soon(reduce, 1)
    assert [(report.algorithm, report.num_chunks) for report in reports] == [(algorithm, 4)] * 2


def test_join_sync_is_told_the_same():
    with join_sync("memory://options-sync", rank=0, world_size=1, chunk_bytes=4096, algorithm="scatter") as replica:
        report = replica.all_reduce({"w": torch.ones(4096)})
    assert (report.algorithm, report.num_chunks) == ("scatter", 4)
    with pytest.raises(ValueError, match="algorithm must be"):
        join_sync("memory://options-sync-2", rank=0, world_size=1, algorithm="ring").__enter__()
