"""One rank of a measured case: told what to do by lines of JSON on stdin, answers with lines of JSON."""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import torch
import xxhash
from event_loop import Ticker

from aiodiloco import ObjectStoreAllReduce
from links.bare import BareExchange
from links.network import INTERFACE

if TYPE_CHECKING:
    from collections.abc import Callable

_TENSORS = 8
_TICK_S = 0.01


def main() -> None:
    """Do what the first line says, all rounds of it."""
    Path("/proc/self/comm").write_text("rank")  # to be told apart in top and perf
    say({"started": True})
    job = hear()
    gc.collect()
    gc.freeze()  # a collection of what torch's import leaves behind holds the loop for 60 ms
    if job["backend"] == "gloo":
        run_gloo(job)
    elif job["backend"] == "bare":
        run_bare(job)
    else:
        anyio.run(run_store, job)


def say(message: dict[str, Any]) -> None:
    """Write a line."""
    print(json.dumps(message), flush=True)


def hear() -> Any:  # noqa: ANN401 - JSON
    """Read a line."""
    return json.loads(sys.stdin.readline())


def make_tensors(rank: int, mib: int) -> dict[str, torch.Tensor]:
    """Return `mib` MiB of fp32 that differ by rank."""
    generator = torch.Generator().manual_seed(rank)
    rows = mib * 2**20 // 4 // _TENSORS // 1024
    return {f"t{i}": torch.randn(rows, 1024, generator=generator) for i in range(_TENSORS)}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return a digest of the tensors' bytes."""
    state = xxhash.xxh3_64()
    for name in sorted(tensors):
        state.update(tensors[name].numpy())
    return state.hexdigest()


class Measure:
    """Time, CPU time and memory of what runs inside."""

    def __init__(self, bind: Callable[[], dict[str, torch.Tensor]]) -> None:
        self._bind = bind
        self.result: dict[str, Any] = {}

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # peak = now
        self._resident = memory("VmRSS")
        self._cpu = cpu_s()
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        ended = time.monotonic()
        self.result |= {
            "began": self._began,
            "ended": ended,
            "cpu_s": cpu_s() - self._cpu,
            "extra_bytes": memory("VmHWM") - self._resident,
            "digest": digest(self._bind()),
        }


def memory(field: str) -> int:
    """Return a field of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def cpu_s() -> float:
    """Return the CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def run_store(job: dict[str, Any]) -> None:
    """All-reduce through the store; a first small round finds the members and opens the connections."""
    options = {"rank": job["rank"], "world_size": job["world_size"], "wire": job["wire"], **job["options"]}
    tensors: dict[str, torch.Tensor] = {}
    async with ObjectStoreAllReduce(job["store"], **options) as all_reduce:
        await all_reduce.all_reduce(make_tensors(job["rank"], 1))
        for number in range(job["rounds"]):
            tensors = make_tensors(job["rank"] + number * job["world_size"], job["mib"])
            say({"ready": True})
            hear()
            measure, ticker = Measure(lambda tensors=tensors: tensors), Ticker(_TICK_S)
            with measure:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(ticker.run)
                    report = await all_reduce.all_reduce(tensors)
                    tg.cancel_scope.cancel()
            say(measure.result | {"report": report.to_dict(), "loop": ticker.summary()})


def run_bare(job: dict[str, Any]) -> None:
    """Make the requests of an all-reduce."""
    for number in range(job["rounds"]):
        prefix = f"{job['store'].removeprefix('s3://')}/{number}"
        nbytes = job["mib"] << 20
        exchange = BareExchange(
            os.environ["AWS_ENDPOINT_URL"], prefix, rank=job["rank"], world_size=job["world_size"], nbytes=nbytes
        )
        say({"ready": True})
        hear()
        measure = Measure(dict)
        with measure:
            exchange.run()
        say(measure.result)


def run_gloo(job: dict[str, Any]) -> None:
    """All-reduce from rank to rank."""
    import torch.distributed as dist

    if job["master"] != "127.0.0.1":
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
    url = f"tcp://{job['master']}:29500"
    dist.init_process_group("gloo", init_method=url, rank=job["rank"], world_size=job["world_size"])
    dist.all_reduce(torch.ones(1 << 18))
    for number in range(job["rounds"]):
        tensors = make_tensors(job["rank"] + number * job["world_size"], job["mib"])
        flat = torch.cat([tensors[name].view(-1) for name in sorted(tensors)])  # what makes gloo fastest: one tensor
        tensors.clear()
        say({"ready": True})
        hear()
        measure = Measure(lambda flat=flat: {"flat": flat})
        with measure:
            dist.all_reduce(flat)
            flat.div_(job["world_size"])
        say(measure.result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
