"""Files of rows that any process writes, and one process makes the table's own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from memworker import Table, VectorSpace, records, verify_table
from memworker.errors import UsageError
from memworker.pool import EchoLoader, EmbeddingPool
from memworker.store import FACTS, Written

pytest.importorskip("lance", reason="needs memworker[ray]")


@pytest.fixture
def table(tmp_path):
    with EmbeddingPool(model=EchoLoader(dim=8)) as pool:
        space = VectorSpace.of(pool.identity, "cosine")
    return Table.open_or_create(tmp_path / "db", "t", space)


def written(table, first, end, tag=""):
    """Write rows of these numbers to a file; the vector tells the number."""
    ids = pa.array([f"i{i}" for i in range(first, end)])
    texts = pa.array([f"text {i}{tag}" for i in range(first, end)])
    metadata = pa.array([f'{{"n":{i}}}' for i in range(first, end)])
    vectors = np.ones((end - first, 8), np.float32)
    vectors[:, 1] = np.arange(first, end)
    rows = records(ids, texts, vectors, metadata_json=metadata)
    facts = {"id": ids, "dedup_key": rows["dedup_key"], "metadata": metadata}
    facts |= {name: rows[name] for name in FACTS[3:]}
    return Written(table.write_fragment(rows), pa.table(facts))


def numbers(table):
    rows = table.rows(columns=["id", "text", "vector", "metadata"]).to_pylist()
    for row in rows:
        number = int(row["id"][1:])
        assert row["vector"][1] == number
        assert row["metadata"] == f'{{"n":{number}}}'
    return sorted(int(row["id"][1:]) for row in rows)


def files(table):
    return sorted(path.name for path in (table.db / "t.lance" / "data").iterdir())


def test_many_files_are_one_commit(table):
    before = table.version
    done = table.adopt([written(table, 0, 100), written(table, 100, 200)])
    assert (done.written, done.duplicates, done.conflicts) == (200, 0, ())
    assert done.version == table.version == before + 1
    assert numbers(table) == list(range(200))
    assert verify_table(table.db, "t").damages == ()


def test_a_file_written_twice_changes_nothing_and_goes(table):
    first, again = written(table, 0, 100), written(table, 0, 100)
    table.adopt([first])
    there = files(table)
    assert len(there) == 2
    done = table.adopt([again])
    assert (done.written, done.duplicates, done.version) == (0, 100, table.version)
    assert numbers(table) == list(range(100))
    assert len(files(table)) == 1


def test_a_file_heard_of_twice_stays(table):
    file = written(table, 0, 100)
    table.adopt([file])
    table.adopt([file])
    assert numbers(table) == list(range(100))


def test_new_rows_beside_known_ones_are_taken_and_of_equal_ids_the_first_counts(table):
    given = [written(table, 0, 100), written(table, 50, 150), written(table, 140, 160, tag="x")]
    done = table.adopt(given)
    assert (done.written, done.duplicates) == (160, 50)
    assert done.conflicts == tuple(range(200, 210))
    assert numbers(table) == list(range(160))
    texts = {row["id"]: row["text"] for row in table.rows(columns=["id", "text"]).to_pylist()}
    assert texts["i145"] == "text 145" and texts["i155"] == "text 155x"


def test_another_writer_may_append_meanwhile(table):
    file = written(table, 0, 100)
    other = Table.open(table.db, "t")
    other.adopt([written(other, 90, 200)])
    done = table.adopt([file])
    assert (done.written, done.duplicates) == (90, 10)
    assert numbers(table) == list(range(200))


def test_nothing_that_is_not_adopted_is_in_the_table(table):
    written(table, 0, 10)
    assert table.count() == 0
    with pytest.raises(UsageError, match="update none"):
        table.adopt([written(table, 0, 10)], on_conflict="update")
