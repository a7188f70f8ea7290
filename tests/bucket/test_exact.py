"""Commits in a bucket stay exact: between writers, after kills, and against the late."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest

from memworker.errors import LockLost, StoreUnwritable, TableLocked
from memworker.locks import Process
from memworker.paths import database_place
from memworker.store import Table, bucketlock, cleanup, objects, places
from memworker.store.bucketlock import _LockPage
from memworker.store.objects import ObjectPath
from memworker.store.schema import widen
from memworker.store.writelock import hold_writing
from tests.bucket.writers import run
from tests.faults.harness import memworker
from tests.store.helpers import SPACE, batch, numbered, texts_by_id

ELSEWHERE = Process(411, "another-machine", "another realm", "1")


@pytest.fixture
def table(place):
    return Table.open_or_create(place, "t", SPACE)


@pytest.fixture
def lock_object(place):
    return ObjectPath(place) / ".memworker" / "t" / "commit.lock"


@pytest.fixture
def soon_silent(monkeypatch):
    """Hold who does not count on for silent after half a second, in locks made from now on."""
    monkeypatch.setattr(bucketlock, "LEASE_S", 0.5)
    bucketlock._lock_of.cache_clear()


def held_elsewhere(lock_object, **facts):
    lock_object.write_bytes(_LockPage("theirs", ELSEWHERE, **facts).write())


def test_a_holder_on_another_machine_is_waited_for_and_named(table, lock_object):
    held_elsewhere(lock_object)
    with pytest.raises(TableLocked, match="process 411 on another-machine has held s3://") as busy:
        table.append(numbered(0, 3), timeout_s=0.3)
    assert busy.value.pid == 411
    held_elsewhere(lock_object, free=True)
    assert table.append(numbered(0, 3)).written == 3


def test_a_write_begun_before_the_lock_was_taken_over_never_comes(
    place, table, lock_object, soon_silent
):
    table.append(numbered(0, 10))
    held_elsewhere(lock_object)
    begun, taken, error = threading.Event(), threading.Event(), []
    late = widen(table_rows(10, 20), table._handle.schema)

    def rows():
        yield from late.to_batches()[:1]
        begun.set()
        taken.wait(60)

    def write():
        # The holder that was taken over: it knew the ids as of before, and writes now.
        handle = Table.open(place, "t")._handle
        try:
            handle.add(pa.RecordBatchReader.from_batches(late.schema, rows()))
        except RuntimeError as refused:
            error.append(str(refused))

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(60)
    # The same ids, by who takes over.
    assert table.append(numbered(10, 20)).written == 10
    taken.set()
    writer.join()
    assert "incompatible with concurrent transaction Restore" in error[0]
    assert len(texts_by_id(table)) == 20


def table_rows(start, stop):
    from memworker.store.schema import conform

    return conform(numbered(start, stop), SPACE.dim)


def test_who_was_taken_over_acknowledges_nothing(table, lock_object, monkeypatch):
    add = table._writes.commit

    def commit(*arguments, **options):
        # Between the lock and the proof, another machine has found us silent.
        held_elsewhere(lock_object)
        return add(*arguments, **options)

    monkeypatch.setattr(table._writes, "commit", commit)
    with pytest.raises(LockLost, match="Run the same again"):
        table.append(numbered(0, 5))
    monkeypatch.undo()
    held_elsewhere(lock_object, free=True, unfenced=True)
    version = table.version
    assert table.append(numbered(0, 5)).duplicates == 5
    # It was freed by who had not fenced yet, so that this is done now.
    assert table.version == version + 1


def test_a_lock_object_that_was_removed_is_made_anew_and_fenced(table, lock_object):
    table.append(numbered(0, 5))
    lock_object.unlink()
    version = table.version
    assert table.append(numbered(0, 7)).written == 2
    assert table.version == version + 2


def test_what_came_between_the_look_and_the_fence_is_kept(place, table, monkeypatch):
    from lancedb.table import LanceTable

    table.append(numbered(0, 5))
    restore, other = LanceTable.restore, Table.open(place, "t")
    rows = widen(table_rows(5, 8), other._handle.schema)

    def late(handle, *arguments):
        monkeypatch.undo()
        other._handle.add(rows)
        return restore(handle, *arguments)

    monkeypatch.setattr(LanceTable, "restore", late)
    (ObjectPath(place) / ".memworker" / "t" / "commit.lock").unlink()
    with hold_writing(place, "t", "commit"):
        assert len(texts_by_id(table)) == 8


@pytest.mark.long
def test_killed_anywhere_the_same_command_finishes(uri, server, state, tmp_path):
    rows = {f"r{n}": f"row number {n}" for n in range(400)}
    lines = [json.dumps({"id": key, "text": text}) for key, text in rows.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    there = ("--db", uri, *server.flags, "--table", "t", "--model", "echo", "--workers", "1")
    ingest = ("ingest", tmp_path / "in.jsonl", *there, "--json", "--quiet")
    for fail in ("before_add:kill", "before_fence:kill", "before_add:soon", "after_add:kill"):
        with memworker(*ingest, fail=fail) as run:
            assert run.wait().code == -9, fail
    with memworker(*ingest) as run:
        done = run.wait()
    assert done.code == 0 and done.report["written"] + done.report["duplicates"] == 400
    table = Table.open(uri, "t", storage_options=server.options)
    assert texts_by_id(table) == rows
    with memworker(*ingest) as run:
        assert run.wait().report["written"] == 0


def test_leftovers_and_old_versions_go_when_they_are_old_enough(place, table, monkeypatch):
    table.append(numbered(0, 5))
    table.append(numbered(5, 9))
    stray = ObjectPath(place) / "t.lance" / "data" / "0123456789abcdef.lance"
    stray.write_bytes(b"of a writer that was killed")
    table.optimize(keep_versions=timedelta(0))
    # Of the last hour nothing goes, for somebody may read it on another machine.
    assert stray.exists() and len(list(table._handle.list_versions())) > 3
    monkeypatch.setattr(places, "BUCKET_KEEP", timedelta(0))
    monkeypatch.setattr(cleanup, "LEFTOVERS_MIN", timedelta(0))
    table.optimize(keep_versions=timedelta(0))
    assert not stray.exists() and len(list(table._handle.list_versions())) <= 2
    assert len(texts_by_id(table)) == 9 and table.append(batch([("id-8", "text 8")])).written == 0


def test_two_writers_of_the_same_ids(uri, server):
    found = run(server, commits=25, rows=3, writers=2, kills=2, stops=1, seed=5, uri=uri)
    assert (found.twice, found.lost, found.wrong, found.rows) == (0, 0, 0, 75)
    assert found.kills == 2


# ── servers that do not hold to conditions ──


class Careless(BaseHTTPRequestHandler):
    """Takes every object, whatever the condition, and has it."""

    there: dict[str, bytes]

    def do_PUT(self):
        self.there[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_GET(self):
        self._answer(self.there.get(self.path, b""))

    def _answer(self, body):
        self.send_response(200)
        self.send_header("ETag", '"same"')
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_a_server_that_ignores_conditions_is_refused(state):
    pytest.importorskip("obstore")
    Careless.there = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        options = {
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "aws_endpoint": f"http://127.0.0.1:{server.server_port}",
            "aws_region": "us-east-1",
            "allow_http": "true",
        }
        try:
            with pytest.raises(StoreUnwritable, match=r"does not hold to conditions \(If-None-"):
                objects.ensure_conditional(database_place("s3://b/db", options))
        finally:
            server.shutdown()
            thread.join()
