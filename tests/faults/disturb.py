"""What is done to a running job from outside: workers killed and stopped, the parent, tenders."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults import harness

# From outside, a life: on a machine where a start takes longer than a kill is away, none would end.
KILLS_A_LIFE = 12


@dataclass(frozen=True)
class Plan:
    """How one life is to be disturbed.

    A worker that is stopped goes on after a while, or (`stop_for_good`) is left to the
    deadline of whoever waits for it.
    """

    fail: str = ""
    worker_kill_every_s: float | None = None
    parent_kill_after_s: float | None = None
    worker_stop_every_s: float | None = None
    stop_for_good: bool = False


class Outside:
    """Kills and stops from outside, on threads, until the life has ended."""

    def __init__(self, plan: Plan, seed: float) -> None:
        self.workers = 0
        self.stops = 0
        self.parent = False
        self._plan = plan
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._stopped: list[psutil.Process] = []

    def watch(self, run: harness.Run) -> None:
        """Begin."""
        wanted: tuple[tuple[float | None, Callable[[harness.Run, float], None]], ...] = (
            (self._plan.worker_kill_every_s, self._kill_workers),
            (self._plan.parent_kill_after_s, self._kill_parent),
            (self._plan.worker_stop_every_s, self._stop_workers),
        )
        for when, target in wanted:
            if when is not None:
                thread = threading.Thread(target=target, args=(run, when), daemon=True)
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """End; whoever is stopped still goes on."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for worker in self._stopped:
            with suppress(psutil.NoSuchProcess):
                worker.resume()

    def _kill_workers(self, run: harness.Run, mean_s: float) -> None:
        while not self._ended.wait(self._random.expovariate(1 / mean_s)):
            if self.workers >= KILLS_A_LIFE:
                return
            worker = self._any_worker(run)
            if worker is not None:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
                    self.workers += 1

    def _kill_parent(self, run: harness.Run, after_s: float) -> None:
        if not self._ended.wait(after_s) and run.process.poll() is None:
            run.process.kill()
            self.parent = True

    def _stop_workers(self, run: harness.Run, mean_s: float) -> None:
        for_good = self._plan.stop_for_good
        while not self._ended.wait(self._random.expovariate(1 / mean_s)):
            worker = self._any_worker(run)
            if worker is None:
                continue
            with suppress(psutil.NoSuchProcess):
                worker.suspend()
                self.stops += 1
                self._stopped.append(worker)
                if for_good:
                    for_good = False  # one a life: each costs its whole deadline
                    continue
                self._ended.wait(self._random.uniform(0.05, 1.0))
                worker.resume()

    def _any_worker(self, run: harness.Run) -> psutil.Process | None:
        workers = _children(run.pid)
        return self._random.choice(workers) if workers else None


class Tenders:
    """Processes that tend the table beside the job, each killed in the midst of something."""

    def __init__(self, db: Path, table: str, scratch: Path, seed: str) -> None:
        self.kills: dict[str, int] = {}
        self.errors: list[str] = []
        self._db, self._table, self._scratch, self._seed = db, table, scratch, seed
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Tenders:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            with self._started(number) as process:
                self._process = process
                try:
                    if not self._ended.is_set():
                        self._kill_amid(process)
                finally:
                    process.kill()
                assert process.stderr is not None
                said = process.stderr.read()
                if "Traceback" in said or "panicked" in said:
                    self.errors.append(said[-600:])

    def _kill_amid(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if self._random.random() < 0.5:
                # Anywhere from its first look to its end, which takes some tenths of a second.
                self._ended.wait(self._random.uniform(0, 0.3))
                if not self._ended.is_set() and process.poll() is None:
                    what = line.strip()
                    self.kills[what] = self.kills.get(what, 0) + 1
                return

    def _started(self, number: int) -> subprocess.Popen[str]:
        given = [str(self._db), self._table, f"{self._seed}/{number}"]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.tender", *given],
            cwd=harness.ROOT,
            env=os.environ | {"TMPDIR": str(self._scratch), "LANCEDB_LOG": "error"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _children(pid: int) -> list[psutil.Process]:
    try:
        return [
            child
            for child in psutil.Process(pid).children()
            if "multiprocess.spawn" in " ".join(harness._cmdline(child))
        ]
    except psutil.NoSuchProcess:
        return []
