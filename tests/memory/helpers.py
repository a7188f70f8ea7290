"""Short ways to say what the tests of memories say often."""

from __future__ import annotations

from dataclasses import dataclass

from memworker.pool.echo import EchoEncoder

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


@dataclass(frozen=True)
class Picky:
    """An echo encoder that fails on "poison" and gives "nothing" no direction."""

    dim: int = 8

    def __call__(self):
        return PickyEncoder(self.dim)


class PickyEncoder:
    def __init__(self, dim):
        self.dim, self.echo = dim, EchoEncoder(dim)

    def encode(self, texts, rows):
        yield from self.echo.encode(texts, rows)
        for row, (start, end) in enumerate(zip(texts.offsets, texts.offsets[1:], strict=False)):
            text = bytes(texts.data[start:end])
            if text == b"poison":
                rows.fail(row, "it is poison")
            if text == b"nothing":
                rows.vectors[row] = 0.0
