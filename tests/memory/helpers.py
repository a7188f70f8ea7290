"""Short ways to say what the tests of memories say often."""

from __future__ import annotations

ALICE = {"user_id": "alice"}


def one(results):
    (record,) = results["results"]
    return record


def texts(results):
    return [record["memory"] for record in results["results"]]


def all_texts(memory, **scope):
    return sorted(texts(memory.get_all(filters=scope, limit=None)))


def all_rows(memory):
    """Every row of the table, older versions too."""
    return memory._core.table.rows(columns=["id", "text", "superseded_at"]).to_pylist()
