"""Encode and decode rates of every wire format, beside a plain copy, in one interleaved run.

    python benchmarks/codec.py [--mib 64] [--chunk-mib 4] [--threads 1 2] [--repeats 9]

Rates are gigabytes (1e9) of fp32 (fp64 for "fp64") values a second, medians over the repeats. Prints a table and
writes benchmarks/out/codec.json. `pack` and `unpack` are whole chunks: header, digest and fresh memory included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aiodiloco.codec import ChunkHeader, Codec, get_codec, pack_chunk, unpack_chunk, wire_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_OUT = Path(__file__).parent / "out" / "codec.json"


def _tasks(codec: Codec, chunks: list[Tensor]) -> Mapping[str, Callable[[int], object]]:
    headers = [ChunkHeader(codec.name, len(chunk), i, 0) for i, chunk in enumerate(chunks)]
    encoded = [torch.zeros(codec.nbytes(len(chunk)), dtype=torch.uint8) for chunk in chunks]
    decoded = [torch.zeros_like(chunk) for chunk in chunks]
    packed = [pack_chunk(header, chunk) for header, chunk in zip(headers, chunks, strict=True)]

    def unpack(i: int) -> None:
        _, body = unpack_chunk(packed[i])
        codec.decode(body, decoded[i])

    return {
        "encode": lambda i: codec.encode(chunks[i], encoded[i]),
        "decode": lambda i: codec.decode(encoded[i], decoded[i]),
        "pack": lambda i: pack_chunk(headers[i], chunks[i]),
        "unpack": unpack,
    }


def _all_tasks(num_values: int, chunk_values: int) -> dict[tuple[str, str], Callable[[int], object]]:
    values = torch.randn(num_values) * 1e-3
    chunks = list(torch.split(values, chunk_values))
    copies = [torch.zeros_like(chunk) for chunk in chunks]
    tasks: dict[tuple[str, str], Callable[[int], object]] = {("copy", "copy"): lambda i: copies[i].copy_(chunks[i])}
    for name in (*wire_names(), "fp64"):
        codec = get_codec(name)
        of_codec = [chunk[: len(chunk) * 4 // codec.dtype.itemsize].to(codec.dtype) for chunk in chunks]
        tasks |= {(name, what): task for what, task in _tasks(codec, of_codec).items()}
    return tasks


def _seconds(task: Callable[[int], object], num_chunks: int, pool: ThreadPoolExecutor) -> float:
    start = time.perf_counter()
    list(pool.map(task, range(num_chunks)))
    return time.perf_counter() - start


def measure(mib: int, chunk_mib: float, threads: list[int], repeats: int) -> list[dict[str, str | int | float]]:
    """Return one record per format, operation and number of threads, with the median GB/s."""
    num_values, chunk_values = mib * 2**20 // 4, int(chunk_mib * 2**20) // 4
    tasks, num_chunks = _all_tasks(num_values, chunk_values), -(-num_values // chunk_values)
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(repeats):
        for count in threads:
            with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:  # torch's own: 1
                for (name, what), task in tasks.items():
                    seconds.setdefault((name, what, count), []).append(_seconds(task, num_chunks, pool))
    return [
        {
            "format": name,
            "operation": what,
            "threads": count,
            "gb_per_s": num_values * 4 / statistics.median(runs) / 1e9,
        }
        for (name, what, count), runs in seconds.items()
    ]


def _print(records: list[dict[str, str | int | float]], threads: list[int]) -> None:
    print(f"{'GB/s':10}" + "".join(f"{f'{count} threads':>12}" for count in threads))
    rows: dict[str, str] = {}
    for record in records:
        row = f"{record['format']} {record['operation']}" if record["format"] != "copy" else "copy"
        rows[row] = rows.get(row, "") + f"{record['gb_per_s']:12.1f}"
    for row, rates in rows.items():
        print(f"{row:12}{rates}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=64, help="values to encode, MiB")
    parser.add_argument("--chunk-mib", type=float, default=4, help="values in a chunk, MiB")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="worker threads")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    records = measure(args.mib, args.chunk_mib, args.threads, args.repeats)
    _print(records, args.threads)
    _OUT.parent.mkdir(exist_ok=True)
    _OUT.write_text(json.dumps({"arguments": vars(args), "torch": torch.__version__, "records": records}, indent=1))


if __name__ == "__main__":
    main()
