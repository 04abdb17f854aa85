"""Training on Modal: the example, whole, both ways it says, and what becomes of replicas that run twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import modal
import pytest

from aiodiloco.executors.modal import ModalExecutor
from aiodiloco.testing.modal import LoopbackModal
from aiodiloco.testing.s3 import create_bucket, moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXAMPLE = Path(__file__).parents[3] / "examples" / "modal_train.py"
_BOUND_S = 100.0
_SIZE = ["--replicas", "4", "--steps", "6", "--sync-every", "3"]


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """What the bucket's secret holds: credentials, and where the S3 server is."""
    with moto_server() as endpoint:
        create_bucket(endpoint, "bucket")
        yield {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }


@pytest.fixture(scope="module")
def plane(bucket) -> Iterator[LoopbackModal]:
    """A control plane with the bucket's secret, whose containers have imported torch."""
    preload = ["aiodiloco.demo.train", "aiodiloco.demo.data", "torch._dynamo", "aiobotocore.session"]
    with LoopbackModal(preload=preload, env={"OMP_NUM_THREADS": "1"}) as plane:
        anyio.run(_create_secret, plane, bucket)
        yield plane


async def _create_secret(plane: LoopbackModal, bucket: dict[str, str]) -> None:
    await modal.Secret.objects.create.aio("aiodiloco-bucket", bucket, client=await plane.client())


async def _create_volume(plane: LoopbackModal) -> None:
    await modal.Volume.objects.create.aio("volume", version=2, client=await plane.client())


@pytest.mark.parametrize(("how", "store"), [("modal run", "s3://bucket/runs"), ("python", "modal-volume://volume/all")])
def test_the_example_trains(plane, how, store) -> None:
    """Four replicas meet in a bucket, of which only their secret says where it is; or on a Volume."""
    if store.startswith("modal-volume"):
        anyio.run(_create_volume, plane)
    command = {
        "modal run": [sys.executable, "-m", "modal", "run", str(_EXAMPLE), "--store", store],
        "python": [sys.executable, str(_EXAMPLE), store],
    }[how]
    ran = subprocess.run(
        [*command, *_SIZE],
        env={**os.environ, **plane.env, "PYTHONPATH": os.pathsep.join(["examples", *sys.path])},
        cwd=_EXAMPLE.parents[1],
        capture_output=True,
        text=True,
        timeout=_BOUND_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"rank 0 \| step 6: loss \d\.\d+ on cpu", ran.stdout)
    losses = re.findall(r"rank \d: \{'held_out_loss': ([\d.]+), 'rounds': 2", ran.stdout)
    assert len(losses) == 4
    assert len(set(losses)) == 1, "all replicas hold the same outer weights"
    assert not any(call.is_alive for call in plane.calls())


async def test_a_replica_preempted_without_checkpoints_is_refused_and_never_trains_beside_itself(
    plane, tmp_path
) -> None:
    """Once rounds were deleted, nobody can know what was averaged before."""
    args = {"uri": str(tmp_path / "store"), "rounds": 100_000, "checkpoint_every": None}
    async with ModalExecutor(client=await plane.client()) as executor:
        [handle] = await executor.launch_replicas(1, "tests.executors.modal.drivers:train_slowly", args)
        await _wait_for_rounds(tmp_path, 5)
        await plane.preempt(handle.call_id)
        [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert row.status == "failed"
    assert "RankTakenError: rank 0 of" in row.error
    assert plane.call(handle.call_id).num_attempts == 2


async def test_a_replica_preempted_in_a_run_with_checkpoints_goes_on(plane, tmp_path) -> None:
    """Modal calls it again, and it takes its own place: no round is lost, none is made twice."""
    args = {"uri": str(tmp_path / "store"), "rounds": 12, "checkpoint_every": 1}
    async with ModalExecutor(client=await plane.client()) as executor:
        [handle] = await executor.launch_replicas(1, "tests.executors.modal.drivers:train_slowly", args)
        await _wait_for_rounds(tmp_path, 4)
        await plane.preempt(handle.call_id)
        [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert row.error is None
    assert plane.call(handle.call_id).num_attempts == 2
    assert row.result == {"incarnation": 1, "rounds": 12}
    assert len(list(tmp_path.glob("store/rounds/*-0001/decision.json"))) == 12


async def _wait_for_rounds(tmp_path, count: int) -> None:
    with anyio.fail_after(_BOUND_S):
        while len(list(tmp_path.glob("store/rounds/*/decision.json"))) < count:  # noqa: ASYNC110 - it rings no bell here
            await anyio.sleep(0.05)


async def test_of_two_incarnations_alive_at_once_only_the_first_contributes(plane, tmp_path) -> None:
    """Modal takes a container for lost and runs its input again, while it goes on."""
    args = {"world_size": 2, "uri": str(tmp_path / "store"), "stop": str(tmp_path / "stop")}
    async with ModalExecutor(client=await plane.client()) as executor:
        handles = await executor.launch_replicas(2, "tests.executors.modal.drivers:reduce_until", args)
        await _wait_for_rounds(tmp_path, 1)
        [first] = plane.call(handles[1].call_id).containers
        await plane.run_again(handles[1].call_id)
        [second] = await executor.collect(handles[1:], timeout=_BOUND_S)
        assert first in plane.containers(), "it is alive all the time"
        assert second.status == "failed"
        assert "RankTakenError: rank 1 of" in second.error
        assert plane.call(handles[1].call_id).num_attempts == 2
        await anyio.Path(args["stop"]).touch()
        [row] = await executor.collect(handles[:1], timeout=_BOUND_S)
    own, *means = row.result
    [holder] = [json.loads(path.read_text())["pid"] for path in tmp_path.glob("store/members/1/*/claim*")]
    assert set(means) == {(own + holder) / 2}, "every round is the mean of rank 0 and the one process that holds rank 1"
    assert len(means) >= 2
