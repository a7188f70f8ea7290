"""The doors of memworker on a database in a bucket: rows, replies and exits as on a disk."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memworker import Memory, export_table, ingest, list_runs, reembed, sync_folder, verify_table
from memworker.errors import StoreError, StoreUnwritable, TableMismatch, TableNotFound, UsageError
from memworker.paths import database_place
from memworker.store import Table, repair_table, table_names
from tests.bucket.server import SECRET
from tests.faults.harness import memworker
from tests.store.helpers import SPACE, batch, numbered, texts_by_id

ROWS = [{"id": f"r{n}", "text": f"row number {n}", "n": n} for n in range(300)]


@pytest.fixture
def table(place):
    return Table.open_or_create(place, "t", SPACE)


def test_ingest_writes_and_search_finds(uri, server, state):
    said = {"db": uri, "table": "docs", "storage_options": server.options, "model": "echo"}
    first = ingest(ROWS, **said, workers=1, metadata="all")
    assert (first.written, first.rejected) == (300, 0)
    again = ingest(ROWS, **said, workers=1, metadata="all")
    assert (again.written, again.duplicates, again.embedded) == (0, 300, 0)
    assert again.table_version == first.table_version
    table = Table.open(uri, "docs", storage_options=server.options)
    assert texts_by_id(table) == {row["id"]: row["text"] for row in ROWS}
    (hit, *_) = table.search_text("number 17", limit=3)
    assert hit.id == "r17"
    runs = list_runs(uri, storage_options=server.options)
    assert [run.outcome for run in runs] == ["finished", "finished"]
    assert table.info().bytes_on_disk > 300 * 384 * 4
    # The journal is this machine's; in the bucket are LanceDB's files and the locks.
    assert list(state.rglob("journal.jsonl"))


def test_the_command_line_takes_an_address_and_storage_options(uri, server, state, tmp_path):
    lines = [*map(json.dumps, ROWS[:50]), '{"id": "bad"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    there = ("--db", uri, *server.flags)

    def ran(*arguments):
        with memworker(*arguments) as run:
            return run.wait()

    done = ran("ingest", tmp_path / "in.jsonl", *there, "--table", "t", "--model", "echo", "--json")
    assert done.code == 3 and done.report["written"] == 50, done.err
    (rejects,) = state.rglob("rejects.jsonl")
    assert str(rejects) in done.err + done.out and len(rejects.read_text().splitlines()) == 1
    hits = ran("search", "number 7", *there, "--table", "t", "--mode", "text", "--json").report
    assert hits["hits"][0]["id"] == "r7"
    assert ran("table", "count", *there, "--table", "t").out == "50\n"
    missing = ran("table", "count", *there, "--table", "other")
    assert missing.code == 1 and f"no table 'other' in {uri}; tables there: t" in missing.err
    for verb in ("verify", "repair"):
        refused = ran("table", verb, *there, "--table", "t")
        assert refused.code == 2 and "bucket; object storage takes a file whole" in refused.err
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT": server.options["aws_endpoint"],
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    with memworker("table", "optimize", "--db", uri, "--table", "t", env=environment) as run:
        done = run.wait()
    assert done.code == 0, done.err


def test_a_memory_lives_there(uri, server):
    with Memory(uri, storage_options=server.options, model="echo", workers=1) as memory:
        (made,) = memory.add("Alice likes tea", user_id="alice")["results"]
        memory.add("Bob likes coffee", user_id="bob")
        memory.update(made["id"], "Alice likes coffee now")
        assert len(memory.get_all(filters={"user_id": "alice"})["results"]) == 1
    with Memory.open(uri, storage_options=server.options) as memory:
        assert memory.get(made["id"])["memory"] == "Alice likes coffee now"
        memory.delete_all(user_id="bob")
        assert memory.get_all(filters={"user_id": "bob"})["results"] == []


def test_a_folder_is_kept_in_step(uri, server, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"text of {name}")
    said = {"db": uri, "table": "notes", "storage_options": server.options, "model": "echo"}
    assert sync_folder(folder, **said, workers=1).added == 3
    (folder / "a.txt").write_text("another text")
    (folder / "b.txt").unlink()
    report = sync_folder(folder, **said, workers=1, delete=True)
    assert (report.updated, report.removed, report.unchanged) == (1, 1, 1)
    out = tmp_path / "out.jsonl"
    export_table(uri, "notes", out, storage_options=server.options)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["text"] for row in rows} == {"another text", "text of c"}


def test_a_table_is_changed_optimised_and_read_by_another_handle(place, table):
    table.append(numbered(0, 500))
    other = Table.open(place, "t")
    assert other.append(numbered(400, 700)).written == 200
    table.append(batch([("id-3", "new text")]), on_conflict="update")
    assert table.delete({"id": {"in": ["id-4", "id-5"]}}) == 2
    assert texts_by_id(other)["id-3"] == "new text" and other.count() == 698
    before = table.info().fragments
    assert before > 1
    table.optimize()
    assert table.info().fragments == 1 and texts_by_id(other)["id-3"] == "new text"
    assert table_names(place) == ["t"]
    vector = np.ones(SPACE.dim, np.float32)
    assert len(other.search(vector, limit=5)) == 5
    with pytest.raises(TableMismatch):
        Table.open_or_create(place, "t", type(SPACE)("other", "fp32", 256, 16, "e" * 16))


def test_what_is_not_for_buckets_says_why(place, table):
    for call in (lambda: verify_table(place, "t"), lambda: repair_table(place, "t")):
        with pytest.raises(UsageError, match="is a bucket; object storage takes a file whole"):
            call()
    with pytest.raises(UsageError, match="re-embedding is for tables in a directory"):
        reembed(place, "t", model="echo")


@pytest.mark.parametrize(
    "given", ["s3://", "s3:///x", "s3://b//x", "s3://b/x?y", "s3://b/x#y", "hdfs://b/x", "s3:/b/x"]
)
def test_an_address_that_is_none_is_refused(given):
    with pytest.raises(UsageError, match=r"address"):
        database_place(given)


def test_addresses_are_one_and_secrets_are_not_shown(state):
    options = {"aws_secret_access_key": "hush", "aws_endpoint": "http://one"}
    place = database_place("s3://b/x/", options)
    assert str(place) == "s3://b/x" == str(database_place("s3://b/x"))
    assert "hush" not in repr(place) and place.state.is_relative_to(state)
    assert place.state != database_place("s3://b/x", {"aws_endpoint": "http://two"}).state
    with pytest.raises(UsageError, match="are for s3://") as refused:
        database_place("/tmp/x", options)
    assert "hush" not in str(refused.value)


def test_options_and_rights_that_do_not_fit_are_told(uri, server, state):
    with pytest.raises(UsageError, match="unknown storage option.*aws_reegion"):
        Table.create(uri, "t", SPACE, storage_options=server.options | {"aws_reegion": "x"})
    wrong = server.options | {"aws_secret_access_key": "wrong-secret"}
    with pytest.raises(StoreUnwritable, match="look at the address, the storage options") as told:
        Table.create(uri, "t", SPACE, storage_options=wrong)
    assert "wrong-secret" not in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(StoreError, match="the store answered 403; look at the address"):
        Table.open(uri, "t", storage_options=wrong)
    with pytest.raises(UsageError, match="aws_reegion"):
        Table.open(uri, "t", storage_options=server.options | {"aws_reegion": "x"})
    nowhere = server.options | {"aws_endpoint": "http://127.0.0.1:1"}
    with pytest.raises(StoreError, match="the store cannot be reached; look at the address"):
        Table.open(uri, "t", storage_options=nowhere)
    with pytest.raises(TableNotFound, match="tables there: none"):
        Table.open(uri, "t", storage_options=server.options)
