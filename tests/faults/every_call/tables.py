"""What is done to a whole table: optimised, indexed, given another model's vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from memworker.cli.panics import panics_unseen
from memworker.ingestion import ingest, reembed
from memworker.store import Table, staged
from tests.faults.every_call.scenario import (
    Arm,
    Bench,
    Outcome,
    Scenario,
    all_rows,
    as_command,
    command,
    database,
    seemly,
    tidy,
    unique,
    vectors_of,
)
from tests.ingestion.spaces import One, Two, vector_of
from tests.store.helpers import index_scopes

OLD, NEW = One(1, 16), Two(2, 24)
ROWS, GONE = 300, 20


def texts() -> dict[str, str]:
    """Return the rows that every one of these tables holds: text by id."""
    return {f"id-{i}": f"word{i} text number {i}" for i in range(GONE, ROWS)}


class OfTable(Scenario):
    """A table of several fragments, with some rows deleted; its rows are to stay as they are."""

    def prepare(self, folder: Path, bench: Bench) -> None:
        everything = {f"id-{i}": f"word{i} text number {i}" for i in range(ROWS)}
        rows = [{"id": key, "text": text} for key, text in everything.items()]
        given: dict[str, Any] = {"db": database(folder), "table": "t", "pool": bench.pool(OLD)}
        for start in range(0, ROWS, 60):
            ingest(rows[start : start + 60], durable=self.durable, **given)
        Table.open(database(folder), "t").delete({"id": {"in": [f"id-{i}" for i in range(GONE)]}})

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (0, 1))
        yield from self.table(folder, outcome)
        yield from tidy(folder, outcome)

    def table(self, folder: Path, outcome: Outcome) -> Iterator[str]:
        yield from same(folder, OLD)


class Optimize(OfTable):
    """Fragments are compacted, and every older version is deleted."""

    name = "optimize"

    def run(self, folder: Path, arm: Arm) -> None:
        given = ("--db", database(folder), "--table", "t", "--keep-minutes", 0, "--json")
        command(arm, "table", "optimize", *given)

    def table(self, folder: Path, outcome: Outcome) -> Iterator[str]:
        yield from same(folder, OLD)
        if outcome.status == 0:
            said, there = json.loads(outcome.out), Table.open(database(folder), "t").info()
            if (said["rows"], said["fragments"]) != (there.rows, there.fragments):
                yield f"it said {said}, and the table is {there}"

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        table = Table.open(database(folder), "t")
        table.optimize(keep_versions=timedelta(0))
        yield from same(folder, OLD)
        if table.info().fragments != 1:
            yield f"not compacted: {table.info()}"


class DurableOptimize(Optimize):
    """The same with a table whose commits are forced to the disk."""

    name = "optimize-durable"
    durable = True


class Index(OfTable):
    """All indices are built: on ids, keys and scopes, on words, on vectors."""

    name = "index"

    def run(self, folder: Path, arm: Arm) -> None:
        arm()
        with panics_unseen():
            as_command(lambda: build_all(folder))

    def table(self, folder: Path, outcome: Outcome) -> Iterator[str]:
        yield from same(folder, OLD)
        yield from found(folder)
        if outcome.status == 0:
            yield from self._indexed(folder)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        build_all(folder)
        yield from same(folder, OLD)
        yield from found(folder)
        yield from self._indexed(folder)

    def _indexed(self, folder: Path) -> Iterator[str]:
        info = Table.open(database(folder), "t").info()
        there = {column for each in info.indices for column in each.columns}
        if there != {"id", "dedup_key", "user_id", "agent_id", "run_id", "text", "vector"}:
            yield f"indexed are {there}"


class DurableIndex(Index):
    """The same with a table whose commits are forced to the disk."""

    name = "index-durable"
    durable = True


class Reembed(OfTable):
    """The table gets another model's vectors: all of them, or none."""

    name = "reembed"

    def run(self, folder: Path, arm: Arm) -> None:
        arm()
        as_command(lambda: reembed(database(folder), "t", model=NEW, workers=1, wait_s=0).to_dict())

    def table(self, folder: Path, outcome: Outcome) -> Iterator[str]:
        model = yield from _model(folder)
        if model is None:
            return
        yield from same(folder, model)
        if outcome.status == 0 and (not json.loads(outcome.out)["switched"] or model is OLD):
            yield f"it said {outcome.out}, and the vectors are those of {model}"
        if "table is as it was" in outcome.err and model is NEW:
            yield f"the table has its new vectors, and it said: {outcome.err}"

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        reembed(database(folder), "t", pool=bench.pool(NEW))
        yield from same(folder, NEW)
        if staged.unfinished(database(folder) / ".memworker/t"):
            yield "the staged vectors are still there"


class DurableReembed(Reembed):
    """The same with a table whose commits are forced to the disk."""

    name = "reembed-durable"
    durable = True

    def acknowledged(self, folder: Path, outcome: Outcome) -> bool:
        # What it has switched is forced once more before the indices; that this failed is told.
        return super().acknowledged(folder, outcome) and "power loss may take" not in outcome.out


def build_all(folder: Path) -> list[str]:
    """Build every index that a table can have; tell of which columns."""
    table = Table.open(database(folder), "t")
    columns = list(index_scopes(table))
    table.maintenance.ensure_index("text")
    table.maintenance.ensure_index("vector")
    return columns


def same(folder: Path, model: One | Two) -> Iterator[str]:
    """Check that the rows are the ones that were there, with the vectors of a model."""
    rows = yield from all_rows(database(folder), "t")
    if rows is None:
        yield "there is no table"
        return
    yield from unique(rows["id"].to_pylist())
    there = dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    if there != texts():
        odd = [row for row in {**there, **texts()} if there.get(row) != texts().get(row)]
        yield f"{len(there)} rows are there of {len(texts())}; other than before: {odd[:3]}"
    yield from _vectors(rows, model)


def found(folder: Path) -> Iterator[str]:
    """Check that rows are found by their vectors and by their words, index or none."""
    try:
        table = Table.open(database(folder), "t")
        for row in ("id-20", "id-150", "id-299"):
            vector = vector_of(texts()[row], OLD.dim, OLD.salt)
            near = [hit.id for hit in table.search(vector, limit=1)]
            if near != [row]:
                yield f"the nearest to {row} is {near}"
            words = [hit.id for hit in table.search_text(texts()[row].split()[0], limit=1)]
            if words != [row]:
                yield f"the word of {row} finds {words}"
            if table.count({"id": row}) != 1:
                yield f"{row} is not found by its id"
    except Exception as error:
        yield f"a search failed: {type(error).__name__}: {str(error)[:400]}"


def _model(folder: Path) -> Iterator[str]:
    rows = yield from all_rows(database(folder), "t")
    if rows is None:
        yield "there is no table"
        return None
    return NEW if rows.schema.field("vector").type.list_size == NEW.dim else OLD


def _vectors(rows: pa.Table, model: One | Two) -> Iterator[str]:
    pairs = zip(rows["id"].to_pylist(), rows["text"].to_pylist(), vectors_of(rows), strict=True)
    wrong = [
        row
        for row, text, vector in pairs
        if (vector != vector_of(text, model.dim, model.salt)).any()
    ]
    if wrong:
        yield f"{len(wrong)} vectors are not their texts', that of {wrong[0]} the first"
