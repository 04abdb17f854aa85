"""Four replicas train a small model on this machine, in async code from end to end.

    python examples/train_async.py

Each replica fits the same function on data of its own. The training step runs in a worker thread, so the replica's
event loop stays free to transfer, log and be cancelled.
"""

from __future__ import annotations

import asyncio
import tempfile

import torch
from anyio import to_thread

import aiodiloco

REPLICAS, STEPS, SYNC_EVERY = 4, 400, 20


def target(x: torch.Tensor) -> torch.Tensor:
    """Return the function to learn, (batch, 8) -> (batch, 1)."""
    return torch.sin(x).sum(dim=1, keepdim=True)


async def train(*, rank: int, world_size: int, rendezvous_uri: str) -> float:
    """Train as one replica; return the loss of the shared weights on data no replica has seen."""
    torch.manual_seed(0)  # the same initial weights everywhere
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = torch.Generator().manual_seed(1 + rank)

    def train_step() -> torch.Tensor:
        x = torch.randn(64, 8, generator=data)
        loss: torch.Tensor = (model(x) - target(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimizer.step()
        return loss

    async with aiodiloco.join(rendezvous_uri, rank=rank, world_size=world_size) as replica:
        diloco = replica.diloco(model, optimizer, sync_every=SYNC_EVERY, wire="bf16")
        for _ in diloco.steps(STEPS):
            await diloco.step(loss=await to_thread.run_sync(train_step))
        with diloco.outer_weights(), torch.no_grad():
            x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
            return float((model(x) - target(x)).square().mean())


async def main() -> None:
    """Launch the replicas, print their losses as they go, and end with their results."""
    with tempfile.TemporaryDirectory() as directory:
        uri = aiodiloco.join_uri(directory, "runs", aiodiloco.new_run_id())
        async with aiodiloco.LocalProcessExecutor() as executor, aiodiloco.open_store(uri) as store:
            args: dict[str, aiodiloco.JSON] = {"world_size": REPLICAS, "rendezvous_uri": uri}
            handles = await executor.launch_replicas(REPLICAS, train, args)
            results = await executor.collect(handles, timeout=120)
            events, _ = await aiodiloco.read_events(store)
    aiodiloco.raise_for_failures(results)
    for event in events:
        if event.kind == "step" and event.writer == "0-0" and event.data["step"] in (1, STEPS // 2, STEPS):
            print(f"step {event.data['step']}: rank 0 has a training loss of {event.data['loss']:.4f}")
    print(f"held-out loss of the shared weights, as each replica sees it: {[r.result for r in results]}")


if __name__ == "__main__":
    asyncio.run(main())
