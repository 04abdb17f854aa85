"""How much memory an all-reduce takes beyond the tensors, measured from outside."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import anyio, torch
from aiodiloco import FileStore, ObjectStoreAllReduce

def resident(field):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
    return int(line.split()[1]) << 10

async def main(directory, wire, algorithm, mib):
    async with FileStore(directory) as store:
        options = dict(world_size=2, wire=wire, algorithm=algorithm)
        async with (
            ObjectStoreAllReduce(store, rank=0, **options) as first,
            ObjectStoreAllReduce(store, rank=1, **options) as second,
        ):
            ranks = (first, second)

            async def reduce_all(size):
                tensors = [{"w": torch.full((size,), float(r.rank))} for r in ranks]
                Path("/proc/self/clear_refs").write_text("5")  # the peak is now
                before = resident("VmRSS")
                async with anyio.create_task_group() as tg:
                    for r in ranks:
                        tg.start_soon(r.all_reduce, tensors[r.rank])
                return resident("VmHWM") - before

            await reduce_all(1 << 20)  # loads and starts whatever the first call does
            print(await reduce_all(mib << 18))

anyio.run(main, *sys.argv[1:4], int(sys.argv[4]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory can only be reset on Linux")
@pytest.mark.parametrize(("wire", "algorithm"), [("fp32", "gather"), ("fp32", "scatter"), ("bf16", "gather")])
def test_an_all_reduce_takes_at_most_half_again_the_payload_on_the_wire(tmp_path, wire, algorithm):
    mib = 128
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), wire, algorithm, str(mib)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wire_bytes = (mib << 20) // (2 if wire == "bf16" else 1)
    assert int(done.stdout) / 2 <= 1.5 * wire_bytes, "of either of two ranks in one process"
