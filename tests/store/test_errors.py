"""What LanceDB raises reaches nobody as it is: at whichever look at the table it comes."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import MemworkerError, StoreError
from memworker.store import Table
from memworker.store.handle import Handle
from memworker.store.verify import verify_table
from tests.store.helpers import SPACE, numbered

QUERY = np.ones(SPACE.dim, np.float32)
MOST_LOOKS = 60


def change(table, rows):
    with table.changing() as change:
        change.find("id", ["id-1"])
        change.insert(rows)


def replace(table, rows):
    with table.changing() as change:
        change.replace(rows)


def edit(table, where):
    with table.editing() as edit:
        edit.set(where, {"superseded_at": datetime.now(UTC)})


ONE = {"id": numbered(1, 2)["id"][0].as_py()}
CALLS = {
    "append": lambda table, n: table.append(numbered(100 * n, 100 * n + 3)),
    "append, update": lambda table, n: table.append(numbered(0, 3), on_conflict="update"),
    "insert": lambda table, n: change(table, numbered(50_000 + n, 50_001 + n)),
    "replace": lambda table, n: replace(table, numbered(1, 2)),
    "set": lambda table, _: edit(table, ONE),
    "delete": lambda table, _: table.delete(ONE),
    "classify": lambda table, _: table.classify(["a"], pa.array(["b"])),
    "held": lambda table, _: table.held(["a"]),
    "search": lambda table, _: table.search(QUERY),
    "search_text": lambda table, _: table.search_text("text"),
    "rows": lambda table, _: table.rows(ONE),
    "count": lambda table, _: table.count(),
    "scan": lambda table, _: list(table.scan(columns=["id"])),
    "version": lambda table, _: table.version,
    "chunking": lambda table, _: table.chunking,
    "info": lambda table, _: table.info(),
    "set_durable": lambda table, n: table.set_durable(n % 2 == 0),
    "sync": lambda table, _: table.sync(),
    "optimize": lambda table, _: table.optimize(),
    "ensure_index": lambda table, _: table.maintenance.ensure_index("id"),
    "needs": lambda table, _: table.maintenance.needs(),
}


@pytest.fixture(scope="module", params=["durable", "kill-safe"])
def table(tmp_path_factory, request):
    durable = request.param == "durable"
    table = Table.create(tmp_path_factory.mktemp("errors") / "db", "t", SPACE, durable=durable)
    table.append(numbered(0, 5))
    return table


@pytest.mark.parametrize("name", CALLS)
def test_the_error_of_any_look_is_told_in_our_words(table, name, monkeypatch):
    real, told = Handle.__getattr__, []
    for failing in range(1, MOST_LOOKS):
        looks = 0

        def fails(self, attribute, failing=failing):
            nonlocal looks
            looks += attribute != "name"
            if attribute != "name" and looks == failing:
                raise RuntimeError("lance error: LanceError(IO): on purpose")
            return real(self, attribute)

        monkeypatch.setattr(Handle, "__getattr__", fails)
        try:
            CALLS[name](table, failing)
        except MemworkerError as error:
            told.append(str(error))
        if looks < failing:
            break
    else:
        raise AssertionError("no end of looks")
    assert all("on purpose" in each or "not" in each for each in told), told


def test_the_table_is_whole_after_all(table):
    assert verify_table(table.db, table.name).healthy


def test_a_schema_that_cannot_be_read_is_told_by_opening(table, monkeypatch):
    monkeypatch.setattr(Handle, "__getattr__", refuse)
    with pytest.raises(StoreError, match="on purpose"):
        Table.open(table.db, table.name)


def refuse(self, name):
    if name == "name":
        return "t"
    raise RuntimeError("lance error: LanceError(IO): on purpose")
