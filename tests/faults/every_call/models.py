"""A model that is built for the first time, into a cache that is empty."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memworker.errors import MemworkerError
from memworker.ingestion import ingest
from memworker.models import ready_model
from tests.faults.every_call.scenario import (
    Arm,
    Bench,
    Outcome,
    Scenario,
    all_rows,
    command,
    database,
    seemly,
    tidy,
    unique,
    vectors_of,
    watched,
)
from tests.models.tiny import WORDS, make_bert, write_modules

ROWS = 12


class FirstUse(Scenario):
    """A dozen rows by a small model of one's own, whose graph has to be made ready first."""

    name = "ingest-model"

    def prepare(self, folder: Path, bench: Bench) -> None:
        write_modules(make_bert(folder / "model"))
        lines = (json.dumps({"id": key, "text": text}) for key, text in _rows().items())
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def run(self, folder: Path, arm: Arm) -> None:
        given = ("--db", database(folder), "--table", "t", "--workers", 1, "--json")
        command(arm, "ingest", folder / "in.jsonl", "--model", folder / "model", *given)

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (0, 1))
        there = yield from self._right(folder, bench)
        if outcome.status == 0 and there != ROWS:
            yield f"it said {outcome.out}, and {there} rows are there of {ROWS}"
        yield from tidy(folder, outcome)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        # What is in the cache now is believed, or made anew: it must be the same model.
        try:
            ready = ready_model(folder / "model", cache_dir=watched(folder) / "cache/models")
        except MemworkerError as error:
            yield f"the model cannot be made ready any more: {error}"
            return
        wanted = self._reference(folder, bench)
        if _digest(ready.graph) != _digest(wanted.graph):
            yield "the cache holds another graph"
        given: dict[str, Any] = {"db": database(folder), "table": "t"}
        ingest([folder / "in.jsonl"], pool=bench.pool(wanted), **given)
        there = yield from self._right(folder, bench)
        if there != ROWS:
            yield f"{there} rows are there of {ROWS}"

    def _right(self, folder: Path, bench: Bench) -> Iterator[str]:
        rows = yield from all_rows(database(folder), "t")
        if rows is None:
            return 0
        ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
        yield from unique(ids)
        if any(_rows().get(row) != text for row, text in zip(ids, texts, strict=True)):
            yield "rows that are not the input's"
        if ids:
            wanted = bench.pool(self._reference(folder, bench)).embed(texts)
            apart = float(np.abs(vectors_of(rows) - wanted).max())
            if not apart < 1e-5:
                yield f"the vectors are not the model's, by {apart}"
        return len(ids)

    def _reference(self, folder: Path, bench: Bench) -> Any:
        """Return the same model, made ready where nothing fails."""
        return ready_model(folder / "model", cache_dir=bench.folder / "models")


def _rows() -> dict[str, str]:
    words = WORDS[5:]
    return {f"id-{i}": " ".join(words[i : i + 2 + i % 5]) for i in range(ROWS)}


def _digest(graph: Path) -> str:
    return hashlib.sha256(graph.read_bytes()).hexdigest()
