"""A job on Ray into a bucket: nodes read what is known there, and one committer writes."""

from __future__ import annotations

import json

import pytest

from memworker import ingest
from memworker.pool import EchoLoader
from memworker.store import Table
from tests.store.helpers import texts_by_id

pytest.importorskip("ray", reason="needs memworker[ray]")

ROWS = {f"r{n}": f"row number {n}" for n in range(500)}


@pytest.mark.long
def test_a_job_on_ray_writes_into_a_bucket_once(uri, server, state, tmp_path):
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in ROWS.items()]
    (tmp_path / "in.jsonl").write_text("".join(lines[:300]))
    said = {"db": uri, "table": "docs", "storage_options": server.options, "model": EchoLoader(8)}
    first = ingest(tmp_path / "in.jsonl", **said, runner="ray")
    assert (first.written, first.rejected) == (300, 0)
    (tmp_path / "in.jsonl").write_text("".join(lines))
    again = ingest(tmp_path / "in.jsonl", **said, runner="ray")
    assert (again.written, again.duplicates, again.embedded) == (200, 300, 200)
    assert texts_by_id(Table.open(uri, "docs", storage_options=server.options)) == ROWS
