"""Kills workers, actors, nodes and drivers of a job on a Ray cluster, at seeded moments.

Each round is one table: the same command is given again after each death of its driver, until
it ends by itself. Then every id, text and vector is held against what was written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from memworker import Table, verify_table

KINDS = ("worker", "actor", "reader", "node", "driver")
JOB_S = 600.0

COMMAND = """
import sys
from memworker import ingest
from memworker.errors import MemworkerError
from memworker.ingestion.cluster.runner import OnRay
from tests.faults.loaders import Unhurried
where, address, commit, pause = sys.argv[1:]
on = OnRay(address, commit=commit, part_bytes=1 << 18)
try:
    report = ingest(f"{where}/in", db=f"{where}/db", table="t", model=Unhurried(float(pause)),
        runner=on, wait_s=60, metadata="none")
except MemworkerError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(report.read, report.written, report.duplicates, report.rejected)
"""


@dataclass(slots=True)
class Tally:
    """What was done, and what was wrong."""

    rounds: int = 0
    rows: int = 0
    runs: int = 0
    gave_up: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    damaged: int = 0
    complaints: list[str] = field(default_factory=list)

    def told(self) -> str:
        return json.dumps({**asdict(replace(self, kills={})), "kills": dict(self.kills)})

    @property
    def faults(self) -> int:
        return self.lost + self.twice + self.wrong + self.damaged


class Round:
    """One table, from the first kill to a run that nobody disturbs."""

    def __init__(self, cluster, home: Path, seed: int, rows: int, commit: str, tally: Tally):
        self.cluster, self.home, self.commit, self.tally = cluster, home, commit, tally
        self.random = random.Random(seed)
        self.oracle = {f"r{i}": f"row {i} {'x' * (i % 40)}" for i in range(rows)}
        (home / "in").mkdir()
        lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in self.oracle.items()]
        (home / "in" / "large.jsonl").write_text("".join(lines[: 3 * rows // 4]))
        (home / "in" / "small.jsonl").write_text("".join(lines[3 * rows // 4 :]))

    def run(self, kinds: list[str]) -> None:
        """Kill in this order, the last kind first."""
        tally = self.tally
        tally.rounds += 1
        tally.rows += len(self.oracle)
        kinds = list(kinds)
        ends = time.monotonic() + JOB_S
        driver = self._start()
        while driver.poll() is None or driver.returncode != 0:
            if time.monotonic() > ends:
                driver.kill()
                tally.complaints.append(f"a job took longer than {JOB_S:.0f} s")
                tally.lost += 1
                return
            if driver.poll() is not None:
                if driver.returncode > 0:
                    tally.gave_up += 1
                    tally.complaints.append(f"gave up: {driver.stderr.read()[-300:]}")
                driver = self._start()
            if kinds and self._wait(driver, self.random.uniform(0.3, 3.0)):
                tally.kills[kinds[-1]] += self._kill(kinds.pop(), driver)
            elif not kinds:
                self._wait(driver, 5.0)
        self._compare()

    def _start(self):
        self.tally.runs += 1
        command = [sys.executable, "-c", COMMAND, str(self.home), self.cluster.address]
        return subprocess.Popen(
            [*command, self.commit, "0.002"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )

    def _wait(self, driver, seconds: float) -> bool:
        """Wait until rows are under way, and then so long; False where the driver ended."""
        while not self._processes("worker"):
            try:
                driver.wait(0.2)
                return False
            except subprocess.TimeoutExpired:
                if not self._processes("actor"):
                    continue
        try:
            driver.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _kill(self, kind: str, driver) -> int:
        if kind == "driver":
            driver.kill()
            driver.wait()
            return 1
        if kind == "node":
            nodes = list(self.cluster.worker_nodes)
            self.cluster.remove_node(self.random.choice(nodes), allow_graceful=False)
            self.cluster.add_node(num_cpus=2, object_store_memory=120 << 20)
            return 1
        there = self._processes(kind)
        if not there:
            return 0
        try:
            self.random.choice(there).kill()
        except psutil.NoSuchProcess:
            return 0
        return 1

    def _processes(self, kind: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                name = process.cmdline()[0]
                actor = name.startswith("ray::") and "MapWorker" in name
                if kind == "actor" and actor:
                    found.append(process)
                elif kind == "reader" and name.startswith("ray::") and not actor:
                    found.append(process)
                elif kind == "worker" and actor:
                    found += process.children()
            except (psutil.Error, IndexError):
                continue
        return found

    def _compare(self) -> None:
        tally, oracle = self.tally, self.oracle
        rows = Table.open(self.home / "db", "t").rows(columns=["id", "text", "vector"])
        ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
        lengths = [vector[1] for vector in rows["vector"].to_pylist()]
        tally.lost += len(set(oracle) - set(ids))
        tally.twice += len(ids) - len(set(ids))
        told = zip(ids, texts, lengths, strict=True)
        tally.wrong += sum(oracle.get(i) != text or n != len(text) for i, text, n in told)
        tally.damaged += len(verify_table(self.home / "db", "t").damages)


def chaos(kills: int, seed: int, rows: int, commits: list[str], tally: Tally, a_round: int = 8):
    """Kill until there have been so many kills; each round has a cluster of its own."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    number = 0
    while tally.kills.total() < kills:
        node = {"num_cpus": 2, "object_store_memory": 120 << 20}
        # The head has no CPU: what it runs is the cluster's own, which Ray does not survive.
        head = {**node, "num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(**node)
            cluster.wait_for_nodes()
            with tempfile.TemporaryDirectory(prefix="chaos-ray-") as home:
                commit = commits[number % len(commits)]
                this = Round(cluster, Path(home), seed + number, rows, commit, tally)
                some = min(a_round, kills - tally.kills.total())
                this.run([this.random.choice(KINDS) for _ in range(some)])
        finally:
            cluster.shutdown()
        number += 1
        sys.stderr.write(f"{tally.told()}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--commit", action="append", choices=["driver", "fragments"])
    args = parser.parse_args()
    tally = Tally()
    chaos(args.kills, args.seed, args.rows, args.commit or ["driver", "fragments"], tally)
    sys.stdout.write(f"{tally.told()}\n")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
