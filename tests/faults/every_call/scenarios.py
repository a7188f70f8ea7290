"""What is run while calls fail, and what must hold afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memworker import EmbeddingPool
from memworker import ingest as memworker_ingest
from memworker.errors import TableNotFound
from memworker.store import Table, journal
from memworker.store.lock import state_dir

Arm = Callable[[], None]

WATCHED = "watched"
KILLED = -9
# What no user may ever see, whatever fails.
UNSEEMLY = ("Traceback", "panicked", "Exception ignored", "RuntimeWarning")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and what it said; `messy` where files may have been left behind."""

    status: int
    out: str
    err: str
    messy: bool = False

    @property
    def killed(self) -> bool:
        return self.status == KILLED


@dataclass(frozen=True, slots=True)
class Bench:
    """What the driver lends to the checks: a pool without a model, which no fault concerns."""

    pool: EmbeddingPool


class Scenario:
    """One job; `folder` holds its inputs, and `folder/watched` all that the faults concern."""

    name = ""

    def prepare(self, folder: Path, bench: Bench) -> None:
        """Make what is there before the job."""

    def run(self, folder: Path, arm: Arm) -> None:
        """Do the job as a user does, in the child; `arm` begins the counting of calls."""
        raise NotImplementedError

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        """Say what is wrong after a run with faults: falsely acknowledged, lost, unreadable."""
        raise NotImplementedError

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        """Do the same job again, without faults, and say what is wrong then."""
        raise NotImplementedError


def watched(folder: Path) -> Path:
    return folder / WATCHED


def database(folder: Path) -> Path:
    return folder / WATCHED / "db"


def command(arm: Arm, *arguments: object) -> None:
    """Run the command line in this process, to its exit."""
    from memworker.cli.main import run

    sys.argv = ["memworker", *map(str, arguments)]
    arm()
    run()


def seemly(outcome: Outcome, allowed: tuple[int, ...]) -> Iterator[str]:
    """Check what every run must keep to: its exit status and what it may print."""
    for word in UNSEEMLY:
        if word in outcome.err or word in outcome.out:
            yield f"{word} was shown: {outcome.err[-1500:]}"
            return
    if "standard output" in outcome.err:
        yield f"standard output is blamed, and is whole: {outcome.err[-500:]}"
    if outcome.status not in (*allowed, KILLED):
        yield f"exit status {outcome.status}: {outcome.err[-500:]}"
    if outcome.status == 1:
        last = outcome.err.strip().splitlines()[-1:]
        if not last or not last[0].startswith("memworker: "):
            yield f"exit status 1 without a reason: {outcome.err!r}"


def tidy(folder: Path) -> Iterator[str]:
    """Check that no temporary file is left."""
    stray = [path for path in (watched(folder) / "tmp").iterdir()]
    stray += [path for path in database(folder).rglob("*") if path.name.endswith(".tmp")]
    if stray:
        yield f"files left behind: {[str(path.relative_to(folder)) for path in stray]}"


# The ingest


GOOD = 46
REJECTED = 4


def fifty_rows(first: int = 0) -> tuple[list[str], dict[str, str]]:
    """Return lines of which four are bad, and the oracle of the good ones: text by id."""
    oracle = {f"id-{i}": f"text {i} {'x' * (i % 17)}" for i in range(first, first + GOOD)}
    lines = [json.dumps({"id": key, "text": text}) for key, text in oracle.items()]
    lines.insert(7, "{ this is no JSON")
    lines.insert(21, json.dumps({"id": "empty", "text": " "}))
    lines.insert(30, json.dumps({"id": f"id-{first + 3}", "text": "another text"}))
    lines.append(json.dumps({"id": "no text"}))
    return lines, oracle


class Ingest(Scenario):
    """Fifty rows, four of them bad, into a table that is made for them."""

    name = "ingest"
    options: tuple[str, ...] = ()

    def prepare(self, folder: Path, bench: Bench) -> None:
        lines, _ = fifty_rows()
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def run(self, folder: Path, arm: Arm) -> None:
        given = ("--db", database(folder), "--table", "t", "--model", "echo", "--workers", 1)
        command(arm, "ingest", folder / "in.jsonl", *given, "--json", *self.options)

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (1, 3))
        _, oracle = fifty_rows()
        there = yield from right(database(folder), oracle)
        if outcome.status == 3:
            report = json.loads(outcome.out)
            if there != len(oracle) or report["written"] + report["duplicates"] < there:
                yield f"it said {report}, and {there} rows are there of {len(oracle)}"
            yield from self._rejects(folder)
        if "nothing of this batch was committed" in outcome.err and there:
            yield f"it said that nothing was committed, and {there} rows are: {outcome.err}"
        yield from self._journal(folder, there)
        if not (outcome.killed or outcome.messy):
            yield from tidy(folder)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        _, oracle = fifty_rows()
        db = database(folder)
        report = memworker_ingest([folder / "in.jsonl"], db=db, table="t", pool=bench.pool)
        there = yield from right(db, oracle)
        if there != len(oracle) or report.written + report.duplicates != len(oracle):
            yield f"after the same job again {there} rows are there of {len(oracle)}: {report}"
        yield from self._rejects(folder)

    def _rejects(self, folder: Path) -> Iterator[str]:
        file = state_dir(database(folder), "t") / "rejects.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) != REJECTED or not all(map(_is_object, lines)):
            yield f"{REJECTED} rows were rejected; the list has {lines}"

    def _journal(self, folder: Path, there: int) -> Iterator[str]:
        noted = journal.read(database(folder) / ".memworker" / "t")
        written = [record.written for record in noted if isinstance(record, journal.Committed)]
        if written and written[-1] > there:
            yield f"the journal notes {written[-1]} rows as committed, {there} are there"


def right(db: Path, oracle: dict[str, str], table: str = "t") -> Iterator[str]:
    """Check rows against the oracle, as far as they are there; give how many there are.

    Every page is read, and each vector must be its text's.
    """
    if not (db / f"{table}.lance").is_dir():
        return 0
    try:
        rows = Table.open(db, table).rows()
    except TableNotFound:
        return 0
    except Exception as error:
        yield f"the table cannot be read: {type(error).__name__}: {str(error)[:400]}"
        return 0
    ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
    if len(set(ids)) != len(ids):
        yield f"{len(ids) - len(set(ids))} ids are there twice"
    there = dict(zip(ids, texts, strict=True))
    odd = [row for row, text in there.items() if oracle.get(row) != text]
    if odd:
        yield f"rows that are not the input's: {odd[:3]}"
    if ids:
        vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
        lengths = [len(text.encode()) for text in texts]
        if vectors[:, 1].tolist() != lengths or not (vectors[:, 0] == 1).all():
            yield "a vector is not its text's"
    return len(there)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class DurableIngest(Ingest):
    name = "ingest-durable"
    options = ("--durable",)


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (Ingest(), DurableIngest())
}


def warm_up() -> None:
    """Import what the scenarios import, so that a forked child need not."""
    import lancedb  # noqa: F401

    import memworker.cli.main
    import memworker.ingest.job
    import memworker.memory.memory  # noqa: F401
