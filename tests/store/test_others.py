"""Tables that another program made, or to which it gave columns."""

from __future__ import annotations

import lancedb
import pyarrow as pa
import pytest

from memworker.errors import StoreError, TableMismatch
from memworker.store import Table, repair_table, verify_table
from tests.store.helpers import SPACE, batch


@pytest.mark.parametrize("ask", [verify_table, repair_table, Table.open])
def test_a_table_of_another_program_is_called_so_and_left_alone(tmp_path, ask):
    theirs = lancedb.connect(tmp_path).create_table("t", pa.table({"text": ["x"]}))
    version = theirs.version
    with pytest.raises(TableMismatch, match="was not made by memworker") as caught:
        ask(tmp_path, "t")
    assert "Drop" not in str(caught.value) and "repair" not in str(caught.value)
    again = lancedb.connect(tmp_path).open_table("t")
    assert (again.version, again.to_arrow().to_pylist()) == (version, [{"text": "x"}])


@pytest.mark.parametrize("policy", ["reject", "update"])
def test_a_column_that_takes_nulls_is_filled_with_them(tmp_path, policy):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(batch([("a", "one")]))
    theirs = lancedb.connect(tmp_path).open_table("t")
    theirs.add_columns({"extra": "cast(1 as int)"})
    theirs.alter_columns({"path": "extra", "nullable": True})
    done = table.append(batch([("a", "new"), ("b", "two")]), on_conflict=policy)
    assert (done.written, done.updated) == (1, policy == "update")
    found = lancedb.connect(tmp_path).open_table("t").to_arrow()
    extra = dict(zip(found["id"].to_pylist(), found["extra"].to_pylist(), strict=True))
    assert extra == {"a": None if policy == "update" else 1, "b": None}
    assert verify_table(tmp_path, "t").healthy


@pytest.mark.parametrize("policy", ["reject", "update"])
def test_a_column_that_takes_none_is_named_with_what_to_do(tmp_path, policy):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(batch([("a", "one")]))
    lancedb.connect(tmp_path).open_table("t").add_columns({"extra": "cast(1 as int)"})
    with pytest.raises(
        StoreError, match="the column 'extra', int32, which takes no null"
    ) as caught:
        table.append(batch([("a", "new"), ("b", "two")]), on_conflict=policy)
    assert "alter_columns" in str(caught.value) and "Traceback" not in str(caught.value)
    with pytest.raises(StoreError, match="the column 'extra'"), table.changing() as change:
        change.insert(batch([("c", "three")]))
    assert table.count() == 1


def test_a_column_of_ours_that_is_gone_is_named(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(batch([("a", "one")]))
    lancedb.connect(tmp_path).open_table("t").drop_columns(["expires_at"])
    with pytest.raises(StoreError, match="has lost expires_at"):
        table.append(batch([("b", "two")]))


def test_rows_have_types_that_every_reader_of_arrow_knows(tmp_path):
    table = Table.create(tmp_path / "db", "t", SPACE)
    table.append(batch([("a", "one"), ("b", "two")], metadata_json=pa.array(['{"n":1}', None])))
    for rows in (table.rows(), *table.scan(columns=["id", "metadata"])):
        assert not any(isinstance(kind, pa.BaseExtensionType) for kind in rows.schema.types)
        assert rows.column("metadata").to_pylist() == ['{"n":1}', None]
    other = Table.create(tmp_path / "other", "t", SPACE)
    assert other.append(table.rows()).written == 2
    assert other.rows().equals(table.rows())
