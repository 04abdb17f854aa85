"""Train the demo's model with DiLoCo on Modal: GPU containers that meet in an object store.

    modal run examples/modal_train.py --store s3://my-bucket/aiodiloco --replicas 4
    python examples/modal_train.py s3://my-bucket/aiodiloco --replicas 4

Both do the same: they put the app on Modal for as long as they run, call `train` once for every rank, show what rank 0
prints, and return when all ranks have ended. If one fails, or you press Ctrl-C, all are ended.

The store must be one that all containers reach: a bucket, or a Modal Volume (`modal-volume://name/prefix`), which is
slower and needs no account elsewhere. The bucket's credentials belong in a Modal secret named `aiodiloco-bucket`:

    modal secret create aiodiloco-bucket AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_REGION=…

and AWS_ENDPOINT_URL=… where it is not Amazon's. The secret must exist, if only with one value, also for a Volume.
"""

from __future__ import annotations

import argparse

import anyio
import modal

from aiodiloco import ModalSpawnExecutor, ReplicaHandle, join_uri, new_run_id, raise_for_failures

app = modal.App("aiodiloco-train")

image = (
    modal.Image.debian_slim("3.12")
    .pip_install("aiobotocore>=3.9", "anyio>=4.14", "torch>=2.6", "xxhash>=3.5")
    .add_local_python_source("aiodiloco")
)


@app.function(
    image=image,
    gpu="L4",
    timeout=3600,  # the most that a replica can cost, whatever happens to this machine
    retries=0,  # with more, a failure is seen only after the last try
    secrets=[modal.Secret.from_name("aiodiloco-bucket")],
)
def train(*, rank: int, world_size: int, rendezvous_uri: str, steps: int, sync_every: int) -> dict[str, float]:
    """Train as one of `world_size` replicas; return the outer weights' held-out loss and what the rounds cost."""
    import torch

    from aiodiloco import join_sync
    from aiodiloco.demo.data import ReplicaData
    from aiodiloco.demo.train import evaluate, new_model, train_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, optimizer = new_model(seed=0)
    model.to(device)
    data = ReplicaData(rank=rank, world_size=world_size, seed=0, context=model.context)
    with join_sync(rendezvous_uri, rank=rank, world_size=world_size) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=sync_every, wire="bf16")
        for step in diloco.steps(steps):
            inputs, targets = data.batch(step)
            loss = train_step(model, optimizer, (inputs.to(device), targets.to(device)))
            diloco.step(loss=loss, tokens=data.tokens_per_step)
            if diloco.inner_step % sync_every == 0:
                print(f"step {diloco.inner_step}: loss {loss.item():.3f} on {device}", flush=True)
        with diloco.outer_weights():
            inputs, targets = data.held_out
            held_out_loss = evaluate(model, (inputs.to(device), targets.to(device)))
    return {"held_out_loss": held_out_loss, "rounds": diloco.round, "bytes_sent": diloco.bytes_sent}


async def launch(store: str, replicas: int, steps: int, sync_every: int) -> None:
    """Launch the replicas, show what rank 0 prints, and say how each ended."""
    run_id = new_run_id()
    executor = ModalSpawnExecutor(train)
    handles = await executor.launch_replicas(
        replicas,
        entrypoint_args={
            "world_size": replicas,
            "rendezvous_uri": join_uri(store, "runs", run_id),
            "steps": steps,
            "sync_every": sync_every,
        },
        run_id=run_id,
    )
    print(f"{run_id}: {executor.dashboard_url(handles[0])}")
    async with anyio.create_task_group() as group:
        group.start_soon(show, executor, handles[0])
        results = await executor.collect(handles)
    raise_for_failures(results)
    for result in results:
        print(f"rank {result.rank}: {result.result}")


async def show(executor: ModalSpawnExecutor, handle: ReplicaHandle) -> None:
    """Print the replica's output until it has ended."""
    async for line in executor.stream_logs(handle, follow=True):
        print(f"rank {handle.rank} | {line}")


@app.local_entrypoint()
async def main(store: str, replicas: int = 4, steps: int = 200, sync_every: int = 20) -> None:
    """What `modal run` runs; it has put the app on Modal already."""
    await launch(store, replicas, steps, sync_every)


async def run_app(options: argparse.Namespace) -> None:
    """What a plain script runs: it puts the app on Modal itself."""
    async with app.run():
        await launch(options.store, options.replicas, options.steps, options.sync_every)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo's model with DiLoCo on Modal.")
    parser.add_argument("store", help="where the replicas meet, e.g. s3://my-bucket/aiodiloco")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sync-every", type=int, default=20)
    anyio.run(run_app, parser.parse_args())
