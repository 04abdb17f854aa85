"""All-reduce through an object store over emulated links, against what the links allow and against gloo.

    python benchmarks/all_reduce.py                          # everything: loopback, links, wire formats; 10 minutes
    python benchmarks/all_reduce.py --suite links --mib 512 --ranks 2 4 8
    python benchmarks/all_reduce.py --suite wires --wires fp32 int8 e3m0

Links: every rank runs in a network namespace of its own behind a token bucket in each direction; so does gloo, from
rank to rank over the same cables. The store is nginx behind them, S3 as far as the library uses it, with objects in
memory; every request to it takes a latency on top, once, in the server: a round trip over a connection that is open.
Not emulated: the time TCP takes to find its speed over a long way, and any latency between the ranks of gloo; both
favour their side. `--backends bare` makes the requests of an all-reduce and nothing else, for what links and server
themselves take. The limit is 2M(N-1)/N bytes at the bandwidth of a link, headers of packets included.

Needs Linux, root or user namespaces, iproute2, and `apt install nginx libnginx-mod-http-lua`. All of it runs in
namespaces that end with this program, however it ends. Prints a table; writes benchmarks/out/all_reduce.json, .png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from links import isolation, network
from links.case import Case, limit_s
from links.network import Shape
from links.plot import draw
from links.ranks import run_case
from links.server import BUCKET, serve, wipe

from aiodiloco.codec import get_codec

OUT = Path(__file__).parent / "out"
LATENCY_S = 0.03
BANDWIDTH = {2: 100e6, 4: 100e6, 8: 50e6}  # bytes/s: 8 ranks at 100 MB/s are more than two cores can move
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_REGION": "us-east-1"}


def cases(args: argparse.Namespace) -> list[Case]:
    """Return what the arguments ask for; compared cases stand side by side."""
    found: list[Case] = []
    if args.suite in ("all", "links"):
        for mib in args.mib:
            for ranks in args.ranks:
                shape = Shape(args.bandwidth * 1e6 if args.bandwidth else BANDWIDTH.get(ranks, 50e6))
                found += [Case(backend, ranks, mib, "fp32", shape, args.rounds) for backend in args.backends]
    if args.suite in ("all", "wires"):
        for wire in args.wires:
            found.append(Case("aiodiloco", args.wire_ranks, args.wire_mib, wire, Shape(100e6), args.rounds))
    if args.suite in ("all", "loopback"):
        for ranks in args.ranks:
            found += [Case(backend, ranks, args.loopback_mib, "fp32", None, args.rounds) for backend in args.backends]
    options = tuple((name, json.loads(value)) for name, value in args.option)
    return [Case(**{**vars(case), "options": options}) if case.backend == "aiodiloco" else case for case in found]


def measure(case: Case, number: int, root: Path) -> dict[str, Any]:
    """Run a case on a fresh server, whose objects lie under `root`, and return its record."""
    host, latency_s = (network.HUB, LATENCY_S) if case.shape else ("127.0.0.1", 0.0)
    with serve(root, host, latency_s=latency_s) as url:
        environ = {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
        rounds = run_case(case, environ, f"s3://{BUCKET}/run-{number}", lambda: wipe(root))
    for answers in rounds:
        if len({answer["digest"] for answer in answers}) > 1:
            raise SystemExit(f"{case}: the ranks ended with different tensors")
    return summarise(case, rounds)


def summarise(case: Case, rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the record of a case: seconds from the first start to the last end, medians over the rounds."""
    codec, numel = get_codec(case.wire), case.mib * 2**18
    wire_bytes = codec.nbytes(numel)
    seconds = [max(a["ended"] for a in answers) - min(a["began"] for a in answers) for answers in rounds]
    answers = [answer for round_ in rounds for answer in round_]
    record = {
        "case": str(case),
        "backend": case.backend,
        "ranks": case.world_size,
        "mib": case.mib,
        "wire": case.wire,
        "bandwidth": case.shape.bandwidth if case.shape else None,
        "wire_bytes": wire_bytes,
        "seconds": statistics.median(seconds),
        "seconds_by_round": seconds,
        "cpu_s": statistics.median(a["cpu_s"] for a in answers),
        "extra_memory": max(a["extra_bytes"] for a in answers) / wire_bytes,
    }
    if case.shape:
        record["limit_s"] = limit_s(wire_bytes, case.world_size, case.shape.bandwidth)
        record["over_limit"] = record["seconds"] / record["limit_s"]
    if case.backend == "aiodiloco":
        last = rounds[-1]
        record |= {
            "requests": statistics.median(a["report"]["requests"] for a in answers),
            "loop_max_ms": max(a["loop"]["max_ms"] for a in answers),
            "loop_computing_ms": max(a["loop"]["max_computing_ms"] for a in answers),
            "algorithm": last[0]["report"]["algorithm"],
            "num_chunks": last[0]["report"]["num_chunks"],
            "phases": [a["report"]["seconds"] for a in last],
        }
    return record


COLUMNS = (
    ("case", "", "{:<44}"),
    ("seconds", "s", "{:8.2f}"),
    ("limit_s", "limit", "{:8.2f}"),
    ("over_limit", "ratio", "{:7.2f}"),
    ("cpu_s", "cpu s", "{:7.2f}"),
    ("extra_memory", "memory", "{:8.2f}"),
    ("requests", "requests", "{:9.0f}"),
    ("loop_max_ms", "loop ms", "{:9.1f}"),
)


def row(record: dict[str, Any]) -> str:
    """Return a line of the table."""
    widths = [len(form.format(0 if name != "case" else "")) for name, _, form in COLUMNS]
    cells = [
        form.format(record[name]) if record.get(name) is not None else " " * width
        for (name, _, form), width in zip(COLUMNS, widths, strict=True)
    ]
    return "".join(cells)


def header() -> str:
    """Return the head of the table."""
    return f"{'':<44}" + "".join(f"{title:>{len(form.format(0))}}" for _, title, form in COLUMNS[1:])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["all", "links", "wires", "loopback"], default="all")
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 512], help="fp32 MiB per rank on links")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--backends", nargs="+", default=["aiodiloco", "gloo"], help="bare too")
    parser.add_argument("--bandwidth", type=float, help="MB/s of every link; default 100, for 8 ranks 50")
    parser.add_argument("--wires", nargs="+", default=["fp32", "bf16", "int8", "e3m0"])
    parser.add_argument("--wire-mib", type=int, default=512)
    parser.add_argument("--wire-ranks", type=int, default=4)
    parser.add_argument("--loopback-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--out", type=Path, default=OUT / "all_reduce.json")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if args.suite == "loopback" and not isolation.is_inside() and not isolation.is_possible():
            memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        else:
            isolation.enter()
            network.build_switch(Shape.mtu)
            root = Path(isolation.SCRATCH)
        print(header())
        records = []
        for number, case in enumerate(cases(args)):
            records.append(measure(case, number, root))
            print(row(records[-1]), flush=True)
    args.out.parent.mkdir(exist_ok=True)
    draw(records, args.out.with_suffix(".png"))
    args.out.write_text(json.dumps({"command": sys.argv, "latency_s": LATENCY_S, "records": records}, indent=1))


if __name__ == "__main__":
    main()
