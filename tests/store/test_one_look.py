"""A change looks at the table once, and sees all that others have done since the last one."""

from __future__ import annotations

import shutil
from collections import Counter

import lancedb
import pyarrow as pa
import pytest

from memworker.errors import StoreError
from memworker.store import Table
from memworker.store.handle import Handle
from tests.store.helpers import SPACE, numbered


@pytest.fixture
def table(tmp_path):
    return Table.open_or_create(tmp_path / "db", "notes", SPACE)


def insert(table, start):
    with table.changing() as change:
        change.insert(numbered(start, start + 1))


def looks_of(monkeypatch):
    """Count from now on what is asked of LanceDB's handle."""
    asked = Counter()
    ask = Handle.__getattr__

    def counting(handle, name):
        asked[name] += 1
        return ask(handle, name)

    monkeypatch.setattr(Handle, "__getattr__", counting)
    return asked


def test_a_change_of_new_rows_asks_for_the_version_alone(table, monkeypatch):
    insert(table, 0)
    insert(table, 1)
    asked = looks_of(monkeypatch)
    insert(table, 2)
    assert asked["version"] == 1 and asked["schema"] == 0 and asked["add"] == 1


def test_a_column_that_another_program_adds_is_seen_by_the_next_change(table):
    for number in range(2):
        insert(table, number)
    other = lancedb.connect(table.db).open_table("notes")
    other.add_columns(pa.field("note", pa.string()))
    insert(table, 2)
    assert table.count() == 3
    with table.changing() as change:
        assert "note" in change._schema().names


def test_a_table_made_anew_is_another_though_its_versions_have_the_same_numbers(table):
    for number in range(2):
        insert(table, number)
    shutil.rmtree(table.db / "notes.lance")
    again = Table.open_or_create(table.db, "notes", SPACE)
    while again.version < 3:
        insert(again, again.version)
    assert again.version == 3
    with pytest.raises(StoreError, match="made again"):
        insert(table, 5)


def test_what_makes_a_table_durable_elsewhere_holds_for_the_next_change(table):
    insert(table, 0)
    other = Table.open(table.db, "notes")
    other.set_durable(True)
    insert(table, 1)
    assert table.durable
