"""Ingests of fifty rows: into a new table, into one that holds half of them, durable ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memworker import ingest
from memworker.store import journal
from tests.faults.every_call.scenario import (
    NOTHING_COMMITTED,
    Arm,
    Bench,
    Outcome,
    Scenario,
    command,
    database,
    right,
    seemly,
    tidy,
)

GOOD, REJECTED = 46, 4


def fifty_rows() -> tuple[list[str], dict[str, str]]:
    """Return lines of which four are bad, and the oracle of the good ones: text by id."""
    oracle = {f"id-{i}": f"text {i} {'x' * (i % 17)}" for i in range(GOOD)}
    lines = [json.dumps({"id": key, "text": text}) for key, text in oracle.items()]
    lines.insert(7, "{ this is no JSON")
    lines.insert(21, json.dumps({"id": "empty", "text": " "}))
    lines.insert(30, json.dumps({"id": "id-3", "text": "another text"}))
    lines.append(json.dumps({"id": "no text"}))
    return lines, oracle


class Ingest(Scenario):
    """Fifty rows, four of them bad, into a table that is made for them."""

    name = "ingest"
    options: tuple[str, ...] = ()
    before = 0

    def prepare(self, folder: Path, bench: Bench) -> None:
        (folder / "in.jsonl").write_text("\n".join(fifty_rows()[0]) + "\n")

    def run(self, folder: Path, arm: Arm) -> None:
        given = ("--db", database(folder), "--table", "t", "--model", "echo", "--workers", 1)
        command(arm, "ingest", folder / "in.jsonl", *given, "--json", *self.options)

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (1, 3))
        _, oracle = fifty_rows()
        there = yield from right(database(folder), oracle)
        if there < self.before:
            yield f"{there} rows are there of {self.before} that were there before"
        if outcome.status == 3:
            report = json.loads(outcome.out)
            if there != len(oracle) or report["written"] + report["duplicates"] != there:
                yield f"it said {report}, and {there} rows are there of {len(oracle)}"
            yield from self._rejects(folder)
        if NOTHING_COMMITTED in outcome.err and there > self.before:
            yield f"it said that nothing was committed, and {there} rows are: {outcome.err}"
        yield from self._journal(folder, there)
        yield from tidy(folder, outcome)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        _, oracle = fifty_rows()
        report = self._again(folder, bench)
        there = yield from right(database(folder), oracle)
        if there != len(oracle) or report.written + report.duplicates != len(oracle):
            yield f"{there} rows are there of {len(oracle)}: {report}"
        yield from self._rejects(folder)

    def _again(self, folder: Path, bench: Bench, **options: Any) -> Any:
        given = {"db": database(folder), "table": "t", "pool": bench.pool()}
        return ingest([folder / "in.jsonl"], durable=self.durable, **given, **options)

    def _rejects(self, folder: Path) -> Iterator[str]:
        file = database(folder) / ".memworker/t/rejects.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        # The list keeps what it says of other inputs: that of the folder this one was copied from.
        of_this = [line for line in lines if str(folder / "in.jsonl") in line]
        if len(of_this) != REJECTED or not all(map(_is_object, lines)):
            yield f"{REJECTED} rows were rejected; the list has {lines}"

    def _journal(self, folder: Path, there: int) -> Iterator[str]:
        noted = journal.read(database(folder) / ".memworker/t")
        written = [record.written for record in noted if isinstance(record, journal.Committed)]
        if written and written[-1] > there:
            yield f"the journal notes {written[-1]} rows as committed, {there} are there"


class DurableIngest(Ingest):
    """The same, each commit forced to the disk."""

    name = "ingest-durable"
    durable = True
    options = ("--durable",)


class Append(Ingest):
    """The same into a table that holds some of the rows already."""

    name = "append"
    before = 19

    def prepare(self, folder: Path, bench: Bench) -> None:
        super().prepare(folder, bench)
        self._again(folder, bench, limit=self.before + 1)


class DurableAppend(Append):
    """The same, each commit forced to the disk."""

    name = "append-durable"
    durable = True
    options = ("--durable",)


class Overwriting(Ingest):
    """Rows whose ids are there with other texts take their place."""

    name = "ingest-update"
    options = ("--on-conflict", "update")
    old = "an older text"

    def prepare(self, folder: Path, bench: Bench) -> None:
        _, oracle = fifty_rows()
        self._input(folder, dict.fromkeys(list(oracle)[:25], self.old))
        self._again(folder, bench)
        self._input(folder, oracle)

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (0, 1))
        yield from self._table(folder, done=outcome.status == 0)
        yield from tidy(folder, outcome)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        self._again(folder, bench, on_conflict="update")
        yield from self._table(folder, done=True)

    def _table(self, folder: Path, *, done: bool) -> Iterator[str]:
        _, new = fifty_rows()
        old = dict.fromkeys(list(new)[:25], self.old)
        flaws = []
        for oracle in (new,) if done else (new, old):
            found = right(database(folder), oracle)
            wrong = list(found)
            rows = yield from _count(folder)
            if rows != len(oracle):
                wrong.append(f"{rows} rows are there of {len(oracle)}")
            flaws.append(wrong)
        # One commit: the rows are all the old ones or all the new ones.
        if all(flaws):
            yield f"neither the rows before nor those after: {flaws}"

    def _input(self, folder: Path, rows: dict[str, str]) -> None:
        lines = (json.dumps({"id": key, "text": text}) for key, text in rows.items())
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")


def _count(folder: Path) -> Iterator[str]:
    from tests.faults.every_call.scenario import all_rows

    rows = yield from all_rows(database(folder), "t")
    return 0 if rows is None else rows.num_rows


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
