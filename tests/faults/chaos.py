# ruff: noqa: T201 - a program that prints its result
"""A seeded run of kills: workers and parents die at random, every row lands once all the same.

A *case* is one input and one fresh database. Its *lives* are runs of one and
the same command, each with its own plan: failpoints at which workers and the
parent kill themselves, kills from outside at random moments, workers that are
stopped for a while or for good. Beside every second case, processes optimise the
table and build its indices, and are killed at that. When a life ends by itself, or
after the last planned one, a run without any kill must finish the job. Then the table is
held against the oracle, and verified.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired

import numpy as np
import pyarrow as pa

from memworker import EmbeddingPool
from memworker.errors import TableNotFound
from memworker.store import Table
from memworker.store.verify import verify_table
from tests.faults import harness
from tests.faults.disturb import Outside, Plan, Tenders
from tests.leftovers import own_folder, shared_memory, shared_memory_left

WORKER_POINTS = ("mid_inference", "after_slot_write", "mid_message", "after_message")
PARENT_POINTS = (
    *("after_create", "before_commit", "before_add", "after_add"),
    *("after_commit", "mid_journal", "after_journal"),
)
LIVES = 12
# So long nothing at all happens to a job of seconds, on however busy a machine.
HUNG_S = 240.0
# A job whose workers end again and again gets on slowly, where their starts take seconds.
ENDLESS_S = 3600.0
_LOOK_S = 5.0
GONE_S = 30.0
PARENTS_A_WORKER_KILL = 0.3
# So many rows of a case have their vectors compared with the model's own.
SAMPLED = 32
# By so much a component may differ. In bf16 it does with the neighbours (docs/PERFORMANCE.md);
# those of two of our texts by 3e-2 at least.
NEAR = {"bf16": 5e-3}
_NEAR = 1e-4


@dataclass
class Tally:
    """What happened; all of the second group must stay 0."""

    worker_kills: int = 0
    parent_kills: int = 0
    worker_stops: int = 0
    optimiser_kills: int = 0
    index_kills: int = 0
    cases: int = 0
    lives: int = 0
    rows: int = 0
    gave_up: int = 0
    seconds: float = 0.0

    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    hung: int = 0
    leaked: int = 0
    failed: int = 0
    complaints: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (
            self.lost or self.duplicated or self.wrong or self.hung or self.leaked or self.failed
        )


@dataclass(frozen=True)
class Settings:
    seed: int
    rows: int
    model: str
    precision: str
    kills: int
    deadline: float
    reference: Callable[[list[str]], np.ndarray] | None = None
    """What the model gives for texts; None for echo, whose vectors tell of themselves."""


def main(given: list[str] | None = None) -> int:
    """Run, print, and return 1 if a row was lost or doubled or anything hung or leaked."""
    options = _parser().parse_args(given)
    deadline = time.monotonic() + options.seconds
    tally, began = Tally(), time.monotonic()
    with _reference(options) as reference:
        given = (options.seed, options.rows, options.model, options.precision, options.kills)
        settings = Settings(*given, deadline, reference)
        mutex = threading.Lock()
        lanes = [
            threading.Thread(target=_lane, args=(settings, number, tally, mutex))
            for number in range(options.lanes)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    tally.seconds = round(time.monotonic() - began, 1)
    _print(tally, options)
    return 0 if tally.clean else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="worker kills; parents: 0.3 of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no case after this")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--lanes", type=int, default=min(4, len(os.sched_getaffinity(0))))
    parser.add_argument("--json", action="store_true")
    return parser


@contextmanager
def _reference(
    options: argparse.Namespace,
) -> Iterator[Callable[[list[str]], np.ndarray] | None]:
    if options.model == "echo":
        yield None
        return
    with EmbeddingPool(options.model, precision=options.precision, workers=1) as pool:
        yield pool.embed


def _print(tally: Tally, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"seed": options.seed, **asdict(tally), "clean": tally.clean}))
        return
    print(
        f"seed {options.seed}: {tally.worker_kills} worker kills, {tally.parent_kills} parent"
        f" kills, {tally.worker_stops} workers stopped, {tally.optimiser_kills} optimisers and"
        f" {tally.index_kills} index builds killed in {tally.lives} lives of {tally.cases} jobs,"
        f" {tally.rows:,} rows, {tally.seconds:.0f} s; {tally.gave_up} lives gave up and were"
        " resumed"
    )
    print(
        f"lost {tally.lost}, duplicated {tally.duplicated}, wrong {tally.wrong},"
        f" hung {tally.hung}, leaked {tally.leaked}, failed {tally.failed}"
    )
    for line in [*tally.complaints[:20], *(f"gave up: {why}" for why in tally.reasons[:5])]:
        print(f"  {line}")


def _lane(settings: Settings, number: int, tally: Tally, mutex: threading.Lock) -> None:
    case = 0
    while _goes_on(settings, tally):
        name = f"{settings.seed}/{number}/{case}"
        try:
            _Case(settings, name, tally, mutex).run()
        except Exception as error:
            with mutex:
                tally.failed += 1
                tally.complaints.append(f"case {name}: {type(error).__name__}: {error}")
        case += 1


def _goes_on(settings: Settings, tally: Tally) -> bool:
    done = (
        tally.worker_kills >= settings.kills
        and tally.parent_kills >= PARENTS_A_WORKER_KILL * settings.kills
    )
    return not done and time.monotonic() < settings.deadline and tally.hung < 3


class _Case:
    def __init__(self, settings: Settings, name: str, tally: Tally, mutex: threading.Lock) -> None:
        self._settings = settings
        self._name = name
        self._tally = tally
        self._mutex = mutex
        self._random = random.Random(name)
        self._own = own_folder()
        self._folder = self._own.path
        self._db = self._folder / "db"
        self._scratch = self._folder / "tmp"
        self._log = self._folder / "fail.log"

    def run(self) -> None:
        try:
            self._scratch.mkdir()
            rows = self._random.randrange(self._settings.rows // 2, self._settings.rows + 1)
            oracle = harness.write_input(self._folder / "in.jsonl", rows)
            with self._tended():
                for _ in range(LIVES):
                    if self._live(self._plan()) in (0, 3):
                        break
                    self._compare(oracle, whole=False)
            code = self._live(Plan())
            if code not in (0, 3):
                self._complain("failed", 1, f"the run without kills left with {code}")
            self._compare(oracle, whole=True)
            with self._mutex:
                self._tally.cases += 1
                self._tally.rows += rows
        finally:
            self._own.remove()

    @contextmanager
    def _tended(self) -> Iterator[None]:
        """Have the table tended meanwhile, in every second case."""
        if self._random.random() < 0.5:
            yield
            return
        scratch = self._folder / "tenders"
        scratch.mkdir()
        with Tenders(self._db, "t", scratch, self._name) as tenders:
            yield
        with self._mutex:
            self._tally.optimiser_kills += tenders.kills.get("optimize", 0)
            self._tally.index_kills += tenders.kills.get("index", 0)
        for said in tenders.errors:
            self._complain("failed", 1, f"a process that tends the table: {said}")

    def _plan(self) -> Plan:
        draw = self._random
        points = []
        if draw.random() < 0.5:
            # From the third passing on: a worker that never finishes a shard makes its texts
            # suspects, and they would be set aside as they should be.
            points.append(f"{draw.choice(WORKER_POINTS)}:kill@{draw.randrange(3, 7)}")
        within = draw.random() < 0.6
        if within:
            action = draw.choice(("kill", "kill", "soon", "exit"))
            turn = draw.choice((1, 1, 2, 3))
            # Only the first life makes the table, and each leaves fewer commits to be done.
            points.append(f"{draw.choice(PARENT_POINTS[self._db.exists() :])}:{action}@{turn}")
        return Plan(
            ",".join(points),
            draw.uniform(0.2, 0.8) if draw.random() < 0.5 else None,
            None if within else draw.uniform(0.8, 2.5),
            draw.uniform(0.3, 1.5) if draw.random() < 0.3 else None,
            stop_for_good=draw.random() < 0.1,
        )

    def _live(self, plan: Plan) -> int:
        """Run the command once under a plan; give its exit status."""
        self._log.unlink(missing_ok=True)
        given = harness.arguments(self._folder / "in.jsonl", self._db, model=self._settings.model)
        given[given.index("--workers") + 1] = "2"
        given += ["--precision", self._settings.precision]
        environment = {"TMPDIR": str(self._scratch), "MEMWORKER_FAIL_LOG": str(self._log)}
        shared = shared_memory()
        killed = Outside(plan, self._random.random())
        run = harness.start(*given, fail=plan.fail, env=environment)
        try:
            killed.watch(run)
            done = self._awaited(run)
            code = done.code
            if code == 1:
                self._tally.reasons.append(done.err.strip().splitlines()[-1][:300])
        except TimeoutExpired:
            code = 1
            self._complain("hung", 1, f"nothing happened for {HUNG_S:.0f} s, or no end, of {plan}")
            run.kill()
        finally:
            killed.stop()
        self._leftovers(run, shared)
        self._count(run.pid, killed, code)
        return code

    def _awaited(self, run: harness.Run) -> harness.Done:
        """Wait for the end, as long as anything happens: commits, or workers that come and go."""
        began = moved_at = time.monotonic()
        seen = None
        while True:
            try:
                return run.wait(_LOOK_S)
            except TimeoutExpired:
                now, there = time.monotonic(), self._traces(run)
                moved_at, seen = (moved_at if there == seen else now), there
                if now - moved_at > HUNG_S or now - began > ENDLESS_S:
                    raise

    def _traces(self, run: harness.Run) -> object:
        log = self._log.read_bytes() if self._log.exists() else b""
        versions = self._db.glob("t.lance/_versions/*")
        return log, {worker.pid for worker in run.workers()}, {path.name for path in versions}

    def _count(self, pid: int, killed: Outside, code: int) -> None:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        by_parent = sum(line.startswith(f"{pid} ") for line in lines)
        with self._mutex:
            self._tally.lives += 1
            self._tally.worker_kills += len(lines) - by_parent + killed.workers
            self._tally.parent_kills += bool(by_parent or killed.parent)
            self._tally.worker_stops += killed.stops
            self._tally.gave_up += code == 1

    def _leftovers(self, run: harness.Run, shared: set[Path]) -> None:
        try:
            harness.wait_for(lambda: not run.left_behind(), timeout_s=GONE_S)
        except AssertionError:
            left = run.left_behind()
            self._complain("leaked", len(left), f"processes left: {[p.pid for p in left]}")
            for process in left:
                process.kill()
        files = [*self._scratch.rglob("*"), *map(Path, shared_memory_left(shared))]
        files = [file for file in files if not _is_probe(file)]
        if files:
            self._complain("leaked", len(files), f"files left: {files[:5]}")
            shutil.rmtree(self._scratch)
            self._scratch.mkdir()

    def _compare(self, oracle: dict[str, str], *, whole: bool) -> None:
        try:
            rows = Table.open(self._db, "t").rows(columns=["id", "text", "vector"])
        except TableNotFound:
            if whole:
                self._complain("lost", len(oracle), "there is no table")
            return
        ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
        there = dict(zip(ids, texts, strict=True))
        self._complain("duplicated", len(ids) - len(there), "an id is there twice")
        odd = [i for i, text in there.items() if oracle.get(i) != text]
        self._complain("wrong", len(odd), f"not the input's: {odd[:3]}")
        if ids:
            self._compare_vectors(ids, texts, rows["vector"].combine_chunks())
        if whole:
            missing = [i for i in oracle if i not in there]
            self._complain("lost", len(missing), f"missing: {missing[:3]}")
            stray = list(self._db.glob("**/*.tmp"))
            self._complain("leaked", len(stray), f"files left: {stray[:3]}")
        damages = verify_table(self._db, "t").damages if whole else ()
        self._complain("wrong", len(damages), f"damaged: {damages[:3]}")

    def _compare_vectors(self, ids: list[str], texts: list[str], column: pa.Array) -> None:
        vectors = column.flatten().to_numpy().reshape(len(ids), -1)
        if self._settings.reference is None:
            bad = [i for i, n, t in zip(ids, vectors[:, 1], texts, strict=True) if n != len(t)]
        else:
            some = self._random.sample(range(len(ids)), min(SAMPLED, len(ids)))
            wanted = self._settings.reference([texts[at] for at in some])
            off = np.abs(vectors[some] - wanted).max(axis=1)
            most = NEAR.get(self._settings.precision, _NEAR)
            bad = [
                f"{ids[at]} by {far:.1e}" for at, far in zip(some, off, strict=True) if far > most
            ]
        self._complain("wrong", len(bad), f"another text's vector: {bad[:3]}")

    def _complain(self, what: str, many: int, said: str) -> None:
        if many:
            with self._mutex:
                setattr(self._tally, what, getattr(self._tally, what) + many)
                self._tally.complaints.append(f"case {self._name}: {what} {many}: {said}")


def _is_probe(file: Path) -> bool:
    """Tell the file by which Python's `tempfile` finds out where it may write.

    dill asks for that when it is imported, before any line of ours runs; a
    process killed within these microseconds leaves those four bytes.
    """
    return file.is_file() and file.read_bytes() in (b"", b"blat") and len(file.name) == 8


if __name__ == "__main__":
    sys.exit(main())
