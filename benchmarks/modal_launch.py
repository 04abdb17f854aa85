"""What a group of replicas on Modal costs in time: this library against a plain loop over Modal's own client.

    python benchmarks/modal_launch.py [--replicas 64] [--many 1000] [--latency-ms 100] [--repeats 3] [--only cancel]

Everything runs against the loopback control plane of `aiodiloco.testing.modal`, in a process of its own, which holds
every request of the client for the latency. The small group's functions return at once, in real containers that are
warm. The large group waits for one container that sleeps: a thousand containers do not fit a machine, and what is
measured is the client's side. The control plane, the containers and the client share the machine's cores, so a row
also says how much processor time the client's process and the control plane's used.

Writes benchmarks/out/modal_launch.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import modal
from modal_proto import api_pb2

from aiodiloco import ModalSpawnExecutor, ReplicaHandle, WaitAll
from aiodiloco.testing.modal import LoopbackModal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    End: TypeAlias = Callable[["ModalSpawnExecutor", list[ReplicaHandle], "Plane"], Awaitable[None]]

OUT = Path(__file__).parent / "out"
_CONTAINERS = 4
_COLUMNS = ("seconds", "client_cpu_s", "plane_cpu_s")
_PENDING_S = 2.0  # so long a collect has waited before its replicas are cancelled

app = modal.App("modal-launch", include_source=False)


@app.function(timeout=3600)
def work(*, rank: int, seconds: float = 0.0) -> int:
    """Return the rank after `seconds`."""
    time.sleep(seconds)
    return rank


@dataclasses.dataclass
class Row:
    """One measurement: seconds by the clock, and of processor time in the client's process and the control plane's."""

    what: str
    began: float
    seconds: float
    client_cpu_s: float
    plane_cpu_s: float
    note: str = ""


def serve(max_containers: int, latency_s: float) -> None:
    """Run a control plane; print what clients need, and for each line of input how many calls live and the last end."""
    with LoopbackModal(max_containers=max_containers, idle_s=600) as plane:
        plane.faults.latency(latency_s)
        print(json.dumps(plane.env), flush=True)
        for _ in sys.stdin:
            ends = [entry.output and entry.output.output_created_at for entry in plane._running().state.inputs.values()]
            print(json.dumps([ends.count(None), max(filter(None, ends), default=0)]), flush=True)


class Plane:
    """A control plane in a process of its own, and the measurements of what it was used for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.rows: list[Row] = []
        self._process = process
        self.env: dict[str, str] = json.loads(self._answer())

    def ends(self) -> tuple[int, float]:
        """Return how many calls have not ended, and when the last of the others did (`time.time()`)."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        num_alive, last = json.loads(self._answer())
        return num_alive, last

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[Row]:
        """Measure the block."""
        row = Row(what, time.time(), *(-value for value in self._now()))
        yield row
        for name, now in zip(_COLUMNS, self._now(), strict=True):
            setattr(row, name, getattr(row, name) + now)
        self.rows.append(row)

    def _now(self) -> tuple[float, float, float]:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return time.perf_counter(), time.process_time(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextlib.contextmanager
def control_plane(max_containers: int, latency_s: float) -> Iterator[Plane]:
    """Run a control plane that holds every request of a client for `latency_s`."""
    command = [sys.executable, __file__, "--serve", str(max_containers), str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Plane(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextlib.asynccontextmanager
async def running(plane: Plane) -> AsyncIterator[ModalSpawnExecutor]:
    """Yield an executor of `work`, which runs on the control plane."""
    client = modal.Client(plane.env["MODAL_SERVER_URL"], api_pb2.CLIENT_TYPE_CLIENT, ("ak-loopback", "as-loopback"))
    async with client, app.run(client=client):
        yield ModalSpawnExecutor(work, client=client)


async def loop_one_by_one(n: int, plane: Plane) -> None:
    """Do what a plain script does: spawn and get, one replica after the other."""
    with plane.measure(f"{n} one by one: spawned and collected"):
        for rank in range(n):
            call = await work.spawn.aio(rank=rank)
            assert await call.get.aio() == rank


async def launch_and_collect(executor: ModalSpawnExecutor, n: int, plane: Plane) -> None:
    """Launch a group and collect it."""
    with plane.measure(f"{n} launched and collected"):
        with plane.measure(f"{n} launched"):
            handles = await executor.launch_replicas(n)
        rows = await executor.collect(handles)
    assert [row.result for row in rows] == list(range(n)), rows


async def small(n: int, latency_s: float, repeats: int) -> list[Row]:
    """Measure a group whose replicas return at once, `repeats` times, beside the plain loop."""
    with control_plane(_CONTAINERS, latency_s) as plane:
        async with running(plane) as executor:
            await launch_and_collect(executor, n, plane)  # containers start, the connection opens
            plane.rows.clear()
            for repeat in range(repeats):
                await launch_and_collect(executor, n, plane)
                if repeat == 0:
                    await loop_one_by_one(n, plane)
        return plane.rows


async def large(n: int, latency_s: float, repeats: int, ends: Sequence[End]) -> list[Row]:
    """Measure a group that is too large for one connection, and whose replicas never end by themselves."""
    with control_plane(1, latency_s) as plane:
        async with running(plane) as executor:
            for _ in range(repeats):
                for end in ends:
                    with plane.measure(f"{n} launched"):
                        handles = await executor.launch_replicas(n, entrypoint_args={"seconds": 3600})
                    await end(executor, handles, plane)
                    with anyio.fail_after(60):
                        while plane.ends()[0]:  # noqa: ASYNC110 - it is in another process
                            await anyio.sleep(0.1)
        return plane.rows


async def cancel_the_collect(executor: ModalSpawnExecutor, handles: list[ReplicaHandle], plane: Plane) -> None:
    """Measure from the cancellation of a collect until it has returned, which is when all replicas have ended."""
    collecting = asyncio.create_task(executor.collect(handles))
    await anyio.sleep(_PENDING_S)
    with plane.measure(f"{len(handles)} ended by cancelling their collect") as row:
        collecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await collecting
    row.note = ends_since(row, plane)


async def cancel_each(executor: ModalSpawnExecutor, handles: list[ReplicaHandle], plane: Plane) -> None:
    """Measure `cancel` of every replica at once, each confirmed, while a collect waits for them all."""
    collecting = asyncio.create_task(executor.collect(handles, policy=WaitAll()))
    await anyio.sleep(_PENDING_S)
    with plane.measure(f"{len(handles)} cancelled and confirmed, while collected") as row:
        async with anyio.create_task_group() as group:
            for handle in handles:
                group.start_soon(executor.cancel, handle)
    row.note = ends_since(row, plane)
    await collecting


def ends_since(row: Row, plane: Plane) -> str:
    """Return in words what became of the calls on the control plane."""
    num_alive, last = plane.ends()
    return f"{num_alive} alive, last end after {last - row.began:.2f} s"


async def collect_until(executor: ModalSpawnExecutor, handles: list[ReplicaHandle], plane: Plane) -> None:
    """Measure a collect whose deadline comes before any replica's end."""
    with plane.measure(f"{len(handles)} collected with timeout=3") as row:
        rows = await executor.collect(handles, timeout=3)
    confirmed = sum(each.status == "cancelled" for each in rows)
    row.note = f"{confirmed} confirmed, {ends_since(row, plane)}"


ENDS: dict[str | None, Sequence[End]] = {
    None: (cancel_the_collect, cancel_each, collect_until),
    "cancel": (cancel_the_collect, cancel_each),
}


def summary(rows: list[Row], limits: Mapping[str, float]) -> list[str]:
    """Return the lines of a table: the median and the worst of each measurement, and the limit it should keep."""
    lines = [f"{'':52} {'median':>8} {'worst':>8} {'limit':>6} {'client':>8} {'plane':>8}"]
    for what in dict.fromkeys(row.what for row in rows):
        same = [row for row in rows if row.what == what]
        seconds, client, plane = ([getattr(row, name) for row in same] for name in _COLUMNS)
        limit = f"{limits[what]:.2f}" if what in limits else ""
        notes = "; ".join(dict.fromkeys(row.note for row in same))
        lines.append(
            f"{what:52} {statistics.median(seconds):6.2f} s {max(seconds):6.2f} s {limit:>6}"
            f" {statistics.median(client):6.2f} s {statistics.median(plane):6.2f} s  {notes}"
        )
    return lines


def limits_for(n: int, many: int) -> dict[str, float]:
    """Return what each measurement should stay under, in seconds."""
    return {
        f"{n} launched": 0.35,
        f"{n} launched and collected": 0.6,
        f"{many} launched": 5.0,
        f"{many} ended by cancelling their collect": 2.0,
        f"{many} cancelled and confirmed, while collected": 2.0,
        f"{many} collected with timeout=3": 3.5,
    }


async def measure(args: argparse.Namespace) -> list[Row]:
    """Return all measurements that are wanted."""
    latency_s, rows = args.latency_ms / 1e3, []
    if args.replicas and args.only is None:
        rows += await small(args.replicas, latency_s, args.repeats)
    if args.many:
        rows += await large(args.many, latency_s, args.repeats, ENDS[args.only])
    return rows


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=64, help="size of the small group; 0: leave it out")
    parser.add_argument("--many", type=int, default=1000, help="size of the large group; 0: leave it out")
    parser.add_argument("--latency-ms", type=float, default=100.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["cancel"], help="cancel: nothing but the ends of the large group by request")
    parser.add_argument("--serve", nargs=2, type=float, metavar=("CONTAINERS", "LATENCY_S"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(int(args.serve[0]), args.serve[1])
        return
    rows = anyio.run(measure, args)
    print("\n".join(summary(rows, limits_for(args.replicas, args.many))))
    medians = {row.what: statistics.median(r.seconds for r in rows if r.what == row.what) for row in rows}
    if one_by_one := medians.get(f"{args.replicas} one by one: spawned and collected"):
        ratio = one_by_one / medians[f"{args.replicas} launched and collected"]
        print(f"{args.replicas} launched and collected: {ratio:.1f} times as fast as one by one")
    OUT.mkdir(exist_ok=True)
    report = {"options": vars(args), "rows": [dataclasses.asdict(row) for row in rows]}
    (OUT / "modal_launch.json").write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
