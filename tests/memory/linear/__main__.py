# ruff: noqa: T201 - a program that prints its result
"""Works on a few users' memories from several processes, some killed, and checks the history.

What every call was answered, and when, is written down by the processes; then each user's
operations must be explained by some order in which each takes effect between its call
and its answer (see check.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memworker import Table
from memworker.memory import reads
from memworker.store.verify import verify_table
from tests.memory.linear import spec
from tests.memory.linear.check import Op, refused
from tests.memory.linear.work import Task, command

ROOT = Path(__file__).parents[3]
TABLE = "memories"


@dataclass
class Told:
    """What happened; `refused`, `odd` and `damages` must stay empty."""

    seed: int
    processes: int
    operations: int = 0
    unknown: int = 0
    kills: int = 0
    stops: int = 0
    seconds: float = 0.0
    by_name: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.refused or self.odd or self.damages)


def main(given: list[str] | None = None) -> int:
    """Run, print, and return 1 if a history cannot be explained."""
    options = _parser().parse_args(given)
    folder = Path(tempfile.mkdtemp(prefix="memworker-linearize-"))
    try:
        told = run(options, folder)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(asdict(told) | {"clean": told.clean}))
    else:
        print(
            f"seed {told.seed}: {told.operations:,} operations of {told.processes} processes in"
            f" {told.seconds:.0f} s, {told.kills} killed, {told.stops} stopped for a while,"
            f" {told.unknown} outcomes unknown: {told.by_name}"
        )
        for line in (*told.refused, *told.odd, *told.damages) or ("linearizable",):
            print(f"  {line}")
    return int(not told.clean)


def run(options: argparse.Namespace, folder: Path) -> Told:
    """Do the work, and look at what was written down."""
    told = Told(options.seed, options.processes)
    began = time.monotonic()
    crew = _Crew(options, folder, told)
    crew.work()
    told.seconds = round(time.monotonic() - began, 1)
    histories = _histories(crew, told)
    table = Table.open(folder / "db", TABLE)
    for user, history in sorted(histories.items()):
        history.append(_last(table, user))
        flaw = refused(history, spec.EMPTY, spec.step)
        if flaw is not None:
            told.refused.append(
                f"{user}: {flaw.op}; the states before may be {flaw.states}; pending {flaw.pending}"
            )
    told.damages += map(str, verify_table(folder / "db", TABLE).damages)
    return told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/linearize", description=__doc__)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2, help="threads of each process")
    parser.add_argument("--users", type=int, default=6, help="each has a few memories")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=40, help="of processes, each replaced")
    parser.add_argument("--seconds", type=float, default=6 * 3600.0, help="call no more after this")
    parser.add_argument("--keep", action="store_true", help="leave the database and the logs")
    parser.add_argument("--json", action="store_true")
    return parser


class _Crew:
    """The processes: started, killed, stopped and replaced until all operations are done."""

    def __init__(self, options: argparse.Namespace, folder: Path, told: Told) -> None:
        self._options, self._folder, self._told = options, folder, told
        self._random = random.Random(options.seed)
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._left = options.operations
        self._tasks: dict[str, Task] = {}
        self.ends: dict[str, int] = {}
        """When the process of each log ended, by name."""

    def work(self) -> None:
        share = -(-self._options.operations // self._options.processes)
        for number in range(self._options.processes):
            self._start(f"{self._options.seed}.{number}", share)
        for process in self._running.values():
            self._release(process)
        try:
            self._look_after()
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()

    def logs(self) -> Iterator[tuple[str, Path]]:
        """Give each process's name and log."""
        yield from ((name, Path(task.log)) for name, task in self._tasks.items())

    def _look_after(self) -> None:
        # Kills come by the number of operations done, so that a slow machine gets as many.
        every = max(1, self._options.operations // (self._options.kills + 1))
        due = every if self._options.kills else self._options.operations
        until = time.monotonic() + self._options.seconds
        while self._running:
            if time.monotonic() > until:
                # What they are at is of unknown outcome, as with every other kill.
                for name, process in list(self._running.items()):
                    process.kill()
                    process.wait()
                    self._ended(name)
                return
            for name, process in list(self._running.items()):
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.2)
                    self._ended(name)
                    if code:
                        self._told.odd.append(f"process {name} ended with {code}")
            if self._running and self._done() >= due:
                due += every
                self._disturb()

    def _disturb(self) -> None:
        name, process = self._random.choice(list(self._running.items()))
        if self._random.random() < 0.25:
            process.send_signal(19)
            time.sleep(self._random.uniform(0.1, 1.0))
            process.send_signal(18)
            self._told.stops += 1
            return
        process.kill()
        process.wait()
        self._ended(name)
        self._told.kills += 1
        task = self._tasks[name]
        left = task.operations - _ended_in(Path(task.log))
        if left > 0:
            self._release(self._start(f"{name}'", left))

    def _start(self, name: str, operations: int) -> subprocess.Popen[str]:
        task = Task(
            str(self._folder / "db"),
            str(self._folder / f"{name}.log"),
            name,
            operations,
            self._options.threads,
            self._options.users,
        )
        process = subprocess.Popen(
            command(task),
            cwd=ROOT,
            # Lance tells of every compaction that a writer came before.
            env=os.environ | {"LANCEDB_LOG": "error"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._tasks[name], self._running[name] = task, process
        return process

    def _release(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"a process ended with {process.wait()} before it was ready")
        process.stdin.close()

    def _ended(self, name: str) -> None:
        process = self._running.pop(name)
        self.ends[name] = time.monotonic_ns()
        assert process.stdout is not None
        process.stdout.close()

    def _done(self) -> int:
        return sum(_ended_in(log) for _, log in self.logs())


def _ended_in(log: Path) -> int:
    return log.read_bytes().count(b'["end"') if log.exists() else 0


def _histories(crew: _Crew, told: Told) -> dict[str, list[Op]]:
    histories: dict[str, list[Op]] = defaultdict(list)
    for name, log in crew.logs():
        for user, op in _read(log, crew.ends[name], told):
            histories[user].append(op)
            told.operations += 1
            told.unknown += not op.known
            told.by_name[op.name] = told.by_name.get(op.name, 0) + 1
    return histories


def _read(log: Path, ended: int, told: Told) -> Iterator[tuple[str, Op]]:
    calls: dict[int, tuple[int, str, str, object]] = {}
    for line in log.read_text().splitlines():
        what, at, number, *facts = json.loads(line)
        if what == "call":
            user, verb, argument = facts
            calls[number] = (at, user, verb, argument)
        elif what == "odd":
            told.odd.append(f"{calls[number]}: {facts[0]}")
        else:
            called, user, verb, argument = calls.pop(number)
            known, result = facts
            yield user, Op(verb, argument, result, called, at, known)
    for called, user, verb, argument in calls.values():
        yield user, Op(verb, argument, None, called, ended, known=False)


def _last(table: Table, user: str) -> Op:
    """Read what is there in the end."""
    called = time.monotonic_ns()
    found = reads.get_all(table, {"user_id": user}, None)["results"]
    pairs = [[each["id"], each["memory"]] for each in found]
    return Op("get_all", None, pairs, called, time.monotonic_ns())


if __name__ == "__main__":
    sys.exit(main())
