"""Training on Modal: the example, whole, both ways it says, and what becomes of a preempted replica."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import modal
import pytest

from aiodiloco.executors.modal import ModalExecutor
from aiodiloco.testing.modal import LoopbackModal

_EXAMPLE = Path(__file__).parents[3] / "examples" / "modal_train.py"
_BOUND_S = 100.0
_SIZE = ["--replicas", "4", "--steps", "6", "--sync-every", "3"]


@pytest.fixture(scope="module")
def plane():
    """A control plane with the bucket's secret, whose containers have imported torch."""
    preload = ["aiodiloco.demo.train", "aiodiloco.demo.data", "torch._dynamo"]
    with LoopbackModal(preload=preload, env={"OMP_NUM_THREADS": "1"}) as plane:
        anyio.run(_create_secret, plane)
        yield plane


async def _create_secret(plane: LoopbackModal) -> None:
    await modal.Secret.objects.create.aio("aiodiloco-bucket", {"AWS_ACCESS_KEY_ID": "x"}, client=await plane.client())


@pytest.mark.parametrize("how", ["modal run", "python"])
def test_the_example_trains(plane, tmp_path, how) -> None:
    store = str(tmp_path / "store")
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
    assert len(list(Path(store, "runs").iterdir())) == 1
    assert not any(call.is_alive for call in plane.calls())


async def test_a_replica_preempted_after_a_round_is_refused_and_never_trains_beside_itself(plane, tmp_path) -> None:
    args = {"world_size": 1, "steps": 100_000, "sync_every": 10, "wire": "bf16", "seed": 0, "evaluate_at": []}
    async with ModalExecutor(client=await plane.client()) as executor:
        [handle] = await executor.launch_replicas(
            1, "aiodiloco.demo.train:train_with_diloco", {**args, "rendezvous_uri": str(tmp_path / "store")}
        )
        with anyio.fail_after(_BOUND_S):
            while not list(tmp_path.glob("store/rounds/*/decision.json")):  # noqa: ASYNC110 - it rings no bell here
                await anyio.sleep(0.05)
        await plane.preempt(handle.call_id)
        [row] = await executor.collect([handle], timeout=_BOUND_S)
    assert row.status == "failed"
    assert "RankTakenError: rank 0 of" in row.error
    assert plane.call(handle.call_id).num_attempts == 2
