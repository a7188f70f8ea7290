# ruff: noqa: T201 - a program that prints its result
"""Runs schedules, in several processes, and says which seeds broke something.

A seed that did is replayed with `--seed S --replay`, which prints what happened.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from itertools import islice

from tests.sim import mutations, schedule
from tests.sim.runs import BATCH, Result, parts


def main(given: list[str] | None = None) -> int:
    """Run, print, and return 1 if anything did not hold."""
    options = _parser().parse_args(given)
    if options.replay:
        return _replay(options.seed)
    if options.mutations:
        return _mutations(options)
    result, began = Result(), time.monotonic()
    seeds = iter(range(options.seed, options.seed + options.schedules))
    # A broken schedule may take a hundred times as long: whoever wants one only gets it soon.
    size = min(BATCH, 5 * options.most_broken)
    until = began + options.seconds
    batches = iter(lambda: list(islice(seeds, size)) if time.monotonic() < until else [], [])
    for part in parts(batches, options.jobs):
        result.add(part)
        if sys.stderr.isatty():
            print(f"\r{result.schedules:,} schedules", end="", file=sys.stderr, flush=True)
        if len(result.broken) >= options.most_broken:
            break
    result.seconds = round(time.monotonic() - began, 1)
    _print(result, options)
    return 1 if result.broken else 0


def _replay(seed: int) -> int:
    try:
        outcome = schedule.run(seed, replay=True)
    except BaseException:
        traceback.print_exc()
        return 1
    print("\n".join(outcome.notes))
    print(outcome.ends)
    return 0


def _mutations(options: argparse.Namespace) -> int:
    """Say of each broken rule after how many schedules it was complained of."""
    missed = 0
    for found in mutations.find(options.seed, options.schedules):
        missed += found.schedules is None
        if options.json:
            print(json.dumps(asdict(found)), flush=True)
            continue
        after = "never" if found.schedules is None else f"after {found.schedules:,}"
        print(f"{after:>12}  {found.rule}: {found.complaint[:100]}", flush=True)
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000, help="nightly: 1000000")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=86_400, help="begin none after this")
    parser.add_argument("--most-broken", type=int, default=20, help="stop after so many")
    parser.add_argument("--replay", action="store_true", help="run one seed and print its story")
    parser.add_argument(
        "--mutations", action="store_true", help="break a rule at a time, and see it found"
    )
    parser.add_argument("--json", action="store_true")
    return parser


def _print(result: Result, options: argparse.Namespace) -> None:
    rate = result.schedules / max(result.seconds, 0.1)
    if options.json:
        # Not asdict: it cannot copy a Counter.
        print(json.dumps(vars(result) | {"schedules_per_s": round(rate, 1)}))
        return
    print(
        f"{result.schedules:,} schedules from seed {options.seed} in {result.seconds:.0f} s"
        f" ({rate:,.0f} a second, {options.jobs} processes): {result.workers:,} workers,"
        f" {result.hours:,.0f} hours; {len(result.broken)} broken"
    )
    print(", ".join(f"{end} {many:,}" for end, many in result.ends.most_common()))
    for seed, what in sorted(result.broken.items()):
        print(f"  --seed {seed} --replay: {what[:300]}")


if __name__ == "__main__":
    sys.exit(main())
