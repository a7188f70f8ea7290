# ruff: noqa: T201 - a program that prints its result
"""Fails every call that a job makes on its files, one at a time, in every way.

A scenario is run once to count its calls. Then it is run once a call, kind of call and
mode: the n-th open, write, fsync, rename, link, unlink, mmap, mkdir, flock, truncate or
close fails with EIO or ENOSPC, once or from then on, or the process is killed there.
After each run, what was acknowledged must be there, all of it readable and nothing
twice; then the same job, without faults, must complete. A run that was stopped goes on
where it ended, as long as the code is the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from tests.faults.every_call.cases import ANY, Case, Novelty, Placed
from tests.faults.every_call.driver import Result, workshop
from tests.faults.every_call.lane import Lane
from tests.faults.every_call.progress import Progress
from tests.faults.every_call.scenarios import SCENARIOS
from tests.faults.every_call.shim import Called

T = TypeVar("T")


def main(given: list[str] | None = None) -> int:
    """Run, print, and return 1 if anything was violated or a call not reached."""
    options = _parser().parse_args(given)
    deadline = time.monotonic() + options.seconds
    with ExitStack() as stack:
        folder, library = stack.enter_context(workshop(options.folder))
        lanes = [
            stack.enter_context(Lane(folder, number, library))
            for number in range(1 if options.case else options.lanes)
        ]
        if options.case:
            return _replayed(lanes[0], options.case)
        progress = Progress(options.progress, carry=options.carry)
        cases = _cases(lanes, options.scenario or list(SCENARIOS), options.seed)
        if not lanes[0].sees_all:
            print("seccomp is not to be had: renames of Rust are not failed", file=sys.stderr)
        chosen = [case for _, case in cases[: options.limit]]
        _run_all(lanes, progress.left(chosen), progress, deadline)
    return _print(cases, progress, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    names = list(SCENARIOS)
    parser.add_argument("--scenario", action="append", choices=names, help="default: all")
    parser.add_argument("--seed", type=int, default=1, help="the order of the cases")
    parser.add_argument("--limit", type=int, help="so many cases, the first of that order")
    parser.add_argument("--seconds", type=float, default=86_400, help="begin no case after this")
    lanes = "how many cases run beside each other; default: the cores"
    parser.add_argument("--lanes", type=int, default=len(os.sched_getaffinity(0)), help=lanes)
    parser.add_argument("--case", action="append", help="run the cases of these names only")
    carried = "count what went well with another state of the code, too"
    parser.add_argument("--carry", action="store_true", help=carried)
    parser.add_argument("--progress", type=Path, default=Path("build/faults.jsonl"))
    parser.add_argument("--folder", type=Path, help="where the databases are; default: TMPDIR")
    parser.add_argument("--json", action="store_true")
    return parser


def _cases(lanes: list[Lane], scenarios: list[str], seed: int) -> list[Placed]:
    """Return all cases of the scenarios, the most telling ones first."""
    cases: list[Placed] = []
    calls: dict[str, list[Called]] = {}

    def count(lane: Lane, scenario: str) -> None:
        calls[scenario] = lane.count(scenario)

    _shared(lanes, scenarios, count)
    novelty, mixed = Novelty(), random.Random(seed)
    for name in scenarios:
        cases += novelty.placed(name, calls[name], mixed)
    return sorted(cases, key=lambda placed: placed[0])


def _run_all(lanes: list[Lane], cases: list[Case], progress: Progress, deadline: float) -> None:
    noting = threading.Lock()
    done = itertools.count(1)

    def run(lane: Lane, case: Case) -> None:
        result = lane.run(case)
        with noting:
            progress.add(result)
            _tell(result, len(cases) - next(done))

    _shared(lanes, cases, run, deadline)


def _shared(
    lanes: list[Lane],
    tasks: Iterable[T],
    do: Callable[[Lane, T], None],
    deadline: float = math.inf,
) -> None:
    """Have each task done by whichever lane is free; raise the first error of any.

    After one, and an interrupt, what is under way is ended and nothing more begun.
    """
    waiting = deque(tasks)

    def work(lane: Lane) -> None:
        while time.monotonic() < deadline:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            do(lane, task)

    with ThreadPoolExecutor(len(lanes)) as threads:
        try:
            for ended in [threads.submit(work, lane) for lane in lanes]:
                ended.result()
        except BaseException:
            waiting.clear()
            raise


def _tell(result: Result, left: int) -> None:
    if result.violations:
        print(_told(result), file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        print(f"\r{left:,} cases left ", end="", file=sys.stderr, flush=True)


def _told(result: Result) -> str:
    lines = [f"{result.case.name} ({result.site or 'not reached'}; status {result.status})"]
    return "\n    ".join([*lines, *result.violations])


def _replayed(lane: Lane, names: list[str]) -> int:
    failed = False
    for name in names:
        result = lane.run(Case.of(name))
        failed |= bool(result.violations)
        print(_told(result), result.said, sep="\n")
    return int(failed)


def _print(cases: list[Placed], progress: Progress, *, as_json: bool) -> int:
    there = progress.results
    results = [there[case.name] for _, case in cases if case.name in there]
    broken = [result for result in results if result.violations]
    figures = list(_figures(cases, results))
    if as_json:
        violations = [{"case": r.case.name, "site": r.site, "what": r.violations} for r in broken]
        print(json.dumps({"scenarios": figures, "violations": violations}))
    else:
        for line in figures:
            print(", ".join(f"{name} {value}" for name, value in line.items()))
    return int(bool(broken) or len(results) < len(cases))


def _figures(cases: list[Placed], results: list[Result]) -> Iterator[dict[str, object]]:
    names = dict.fromkeys(case.scenario for _, case in cases)
    for scenario in [*names, "all"]:
        theirs = [(at, case) for at, case in cases if scenario in ("all", case.scenario)]
        ours = [result for result in results if scenario in ("all", result.case.scenario)]
        run = {result.case.name for result in ours}
        novel = [case.name for (repeats, *_), case in theirs if not repeats]
        ends = Counter(r.status for r in ours if r.acted)
        yield {
            "scenario": scenario,
            "calls": len(_calls(case for _, case in theirs)),
            "reached": len(_calls(result.case for result in ours if result.acted)),
            "cases": len(theirs),
            "run": len(ours),
            "of calls like none before": len(novel),
            "of these run": sum(name in run for name in novel),
            "not reached": sum(not r.acted for r in ours),
            "acknowledged": ends[0] + ends[3],
            "refused": ends[1],
            "killed": ends[-9],
            "violations": sum(bool(r.violations) for r in ours),
        }


def _calls(cases: Iterable[Case]) -> set[tuple[str, str, int]]:
    return {(case.scenario, case.kind, case.nth) for case in cases if case.kind != ANY}


if __name__ == "__main__":
    sys.exit(main())
