"""`python -m aiodiloco.testing.simulation --seeds 0:10000`: try many seeds and say what happened."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from aiodiloco.testing.simulation.mutations import MUTATIONS
from aiodiloco.testing.simulation.search import Tally, search

if TYPE_CHECKING:
    from collections import Counter

__all__: list[str] = []

_COMMAND = "python -m aiodiloco.testing.simulation"
_EVERY_S = 10.0


def _main() -> int:
    arguments = _parse()
    if arguments.mutations:
        return _look_for_mutations(None if arguments.known else arguments.seeds, arguments.jobs)
    began, total = time.monotonic(), Tally()
    told_at = began
    for tally in search(arguments.seeds, jobs=arguments.jobs, mutation=arguments.mutation):
        total += tally
        if time.monotonic() > told_at + _EVERY_S:
            told_at = time.monotonic()
            _say(f"{total.num_seeds} of {len(arguments.seeds)} seeds, {len(total.failed)} failed", sys.stderr)
    if arguments.json:
        _say(json.dumps(total.to_dict(), indent=1))
    else:
        _print_table(total, time.monotonic() - began)
    return 1 if total.failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=range(500), help="one seed, or first:last+1 (default 0:500)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print counts as JSON")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="break this promise of the protocol first")
    parser.add_argument("--mutations", action="store_true", help="break each, and look for the first seed that notices")
    parser.add_argument("--known", action="store_true", help="with --mutations: try only a seed known to notice each")
    return parser.parse_args()


def _seeds(text: str) -> range:
    first, colon, end = text.partition(":")
    return range(int(first), int(end) if colon else int(first) + 1)


def _look_for_mutations(seeds: range | None, jobs: int) -> int:
    num_missed = 0
    for name, mutation in MUTATIONS.items():
        tried = [mutation.known] if seeds is None else seeds
        failed: dict[int, str] = {}
        for tally in search(tried, jobs=jobs, mutation=name, stop_at_first=True):
            failed.update(tally.failed)
        num_missed += not failed
        found = f"seed {min(failed)}: {failed[min(failed)][:200]}" if failed else f"NOT NOTICED in {tried}"
        _say(f"{name} ({mutation.what}): {found}")
    return 1 if num_missed else 0


def _print_table(total: Tally, seconds: float) -> None:
    _print_row("seeds", f"{total.num_seeds}, {len(total.failed)} failed")
    groups = {"seen": total.seen, "done to processes": total.caused, "faults of the store": total.store_faults,
              "faults of the control plane": total.plane_faults}  # fmt: skip
    for title, counts in groups.items():
        _say(title)
        _print_counts(counts)
    _print_row("faults injected in all", f"{total.num_faults:,}")
    _print_row("virtual time", f"{total.virtual_s / 3600:,.1f} h")
    _print_row("real time", f"{seconds:.1f} s; {total.cpu_s / max(1, total.num_seeds):.3f} s of processor time a seed")
    for seed, error in sorted(total.failed.items()):
        _say(f"FAILED  {_COMMAND} --seeds {seed}\n        {error[:500]}")


def _print_counts(counts: Counter[str]) -> None:
    for name, count in sorted(counts.items()):
        _print_row(f"  {name}", f"{count:,}")


def _print_row(name: str, value: str) -> None:
    _say(f"{name:32} {value}")


def _say(text: str, file: TextIO | None = None) -> None:
    (file or sys.stdout).write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(_main())
