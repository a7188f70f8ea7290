"""Re-embedding: with pools, other processes at work, kills, and real models."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import BTree

from memworker import EmbeddingPool, Memory, Table, ingest, records
from memworker.errors import StoreError, TableLocked, TableMismatch, TableNotFound, UsageError
from memworker.ingestion import Stop, reembed
from memworker.pool.echo import EchoLoader
from memworker.store import VectorSpace, lock, staged
from memworker.store.reembed import Reembedding
from tests.faults.harness import memworker, stored
from tests.ingestion.spaces import BAD, One, Two, vector_of
from tests.store.helpers import index_scopes

ROOT = Path(__file__).parents[2]
DIM = 16


@pytest.fixture(scope="module")
def one():
    with EmbeddingPool(One(1, DIM), workers=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def two():
    """A pool of the same dimension, in whose space the vectors of `one` mean nothing."""
    with EmbeddingPool(Two(2, DIM), workers=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def wider():
    with EmbeddingPool(Two(3, 2 * DIM), workers=1) as pool:
        yield pool


@pytest.fixture
def db(tmp_path):
    return tmp_path / "db"


def rows_of(pool, start, stop, **columns):
    ids = [f"id-{i}" for i in range(start, stop)]
    texts = [f"text {i}" for i in range(start, stop)]
    return records(pa.array(ids), pa.array(texts), pool.embed(texts), **columns)


def made(db, pool, rows=300, **columns):
    table = Table.open_or_create(db, "t", VectorSpace.of(pool.identity))
    table.append(rows_of(pool, 0, rows, **columns))
    return table


def finds_itself(table, pool, *texts):
    """Each text's vector finds that text, with a cosine of 1."""
    for text, vector in zip(texts, pool.embed(list(texts)), strict=True):
        hit = table.search(vector, limit=1, visible_only=False)[0]
        assert hit.text == text and hit.score > 0.999
    return True


def test_the_whole_table_gets_vectors_of_the_other_model(db, one, wider):
    now = datetime.now(UTC)
    table = made(db, one, metadata_json=pa.array([f'{{"n":{i}}}' for i in range(300)]))
    identity, before = table.identity, table.rows({"id": "id-7"}).drop_columns("vector")
    table.append(
        records(pa.array(["old"]), pa.array(["as it was"]), one.embed(["x"]), superseded_at=now)
    )
    report = reembed(db, "t", pool=wider)
    assert (report.rows, report.embedded, report.switched) == (301, 301, True)
    assert (report.model_before, report.model, report.dim) == ("One", "Two", 2 * DIM)
    after = Table.open(db, "t")
    assert after.version == report.table_version and after.identity == identity
    assert (after.info().model, after.info().dim) == ("Two", 2 * DIM)
    assert finds_itself(after, wider, "text 0", "text 299", "as it was")
    assert after.count() == 301 and after.count({"metadata.n": 5}) == 1
    assert after.rows({"id": "id-7"}).drop_columns("vector") == before
    assert after.append(rows_of(wider, 290, 310)).written == 10
    assert not (db / ".memworker/t/reembed").exists()


def test_a_durable_table_stays_one(db, one, wider):
    """Its new rows are read back, by their new size, before the switch is believed."""
    made(db, one).set_durable(True)
    assert reembed(db, "t", pool=wider).switched
    table = Table.open(db, "t")
    assert table.durable and table.space.dim == 2 * DIM
    finds_itself(table, wider, "text 0", "text 299")


def test_an_empty_table_and_equal_texts(db, one, two):
    table = Table.create(db, "t", VectorSpace.of(one.identity))
    assert reembed(db, "t", pool=two).switched
    table = Table.open(db, "t")
    texts = pa.array(["same", "same", "other"])
    table.append(records(pa.array(["a", "b", "c"]), texts, two.embed(texts.to_pylist())))
    report = reembed(db, "t", pool=one)
    assert (report.rows, report.embedded) == (3, 2)
    assert finds_itself(Table.open(db, "t"), one, "same", "other")


def test_the_same_model_again_has_nothing_to_do(db, one, two):
    made(db, one)
    reembed(db, "t", pool=two)
    version = Table.open(db, "t").version
    again = reembed(db, "t", pool=two)
    assert (again.switched, again.embedded, again.rows) == (False, 0, 300)
    assert again.table_version == version


@pytest.mark.parametrize("columns", [("vector", "text", "id", "user_id"), ()])
def test_indices_are_built_again_for_the_new_vectors(db, one, two, columns):
    table = made(db, one, 600)
    if columns:
        table.maintenance.ensure_index("vector")
        table.maintenance.ensure_index("text")
        index_scopes(table)
    had = {index.columns for index in table.info().indices}
    report = reembed(db, "t", pool=two)
    after = Table.open(db, "t")
    indices = after.info().indices
    assert {index.columns for index in indices} == had >= {(name,) for name in columns}
    assert all(index.unindexed_rows == 0 for index in indices)
    assert finds_itself(after, two, "text 5", "text 599") and report.switched
    assert after.search_text("599")[0].id == "id-599"


def test_an_index_of_the_users_own_is_named(db, one, two):
    made(db, one)
    lancedb.connect(db).open_table("t").create_index("created_at", config=BTree())
    assert any("created_at" in note for note in reembed(db, "t", pool=two).notes)


@pytest.mark.parametrize("other", ["two", "wider"])
def test_whoever_has_the_table_open_is_told_and_gets_no_wrong_hit(db, one, other, request):
    pool, table = request.getfixturevalue(other), made(db, one)
    vector = one.embed(["text 3"])[0]
    assert finds_itself(table, one, "text 3")
    reembed(db, "t", pool=pool)
    told = rf"re-embedded with 'Two' \(fp32, {pool.dim} dimensions\) .* open it again"
    fresh = rows_of(one, 300, 301)
    for use in (
        lambda: table.search(vector),
        lambda: table.search_many(vector[None]),
        lambda: table.search_hybrid("text", vector),
        lambda: table.append(fresh),
        lambda: table.classify(["id-3"], fresh["dedup_key"]),
        lambda: table.changing().__enter__(),
    ):
        with pytest.raises(TableMismatch, match=told):
            use()
    assert Table.open(db, "t").count() == table.count() == 300
    assert finds_itself(Table.open(db, "t"), pool, "text 3")


def test_a_memory_that_is_open_says_so(db, one, wider):
    with Memory(db, pool=one) as memory:
        memory.add("tea is hot", user_id="alice")
        reembed(db, "memories", pool=wider)
        with pytest.raises(TableMismatch, match="open it again"):
            memory.search("tea", filters={"user_id": "alice"})
        with pytest.raises(TableMismatch, match="open it again"):
            memory.add("ice is cold", user_id="alice")
    with Memory(db, pool=wider) as memory:
        found = memory.search("tea is hot", filters={"user_id": "alice"})["results"]
        assert [hit["memory"] for hit in found] == ["tea is hot"]


READER = """
import sys
from memworker.errors import TableMismatch
from memworker.store import Table
from tests.ingestion.spaces import vector_of
table, done = Table.open(sys.argv[1], "t"), 0
try:
    while True:
        i = done * 7 % 300
        hit = table.search(vector_of(f"text {i}", 16, 1), limit=1)[0]
        assert hit.id == f"id-{i}" and hit.score > 0.999, (i, hit)
        done += 1
        if done == 3:
            print("ready", flush=True)
except TableMismatch as error:
    print(done, error, flush=True)
"""

WRITER = """
import sys
import numpy as np, pyarrow as pa
from memworker.errors import TableMismatch
from memworker.store import Table, records
from tests.ingestion.spaces import vector_of
table, done = Table.open(sys.argv[1], "t"), 0
def rows(ids, texts):
    vectors = np.array([vector_of(text, 16, 1) for text in texts], np.float32)
    return records(pa.array(ids), pa.array(texts), vectors)
try:
    while True:
        fresh = rows([f"new-{done}"], [f"new text {done}"])
        table.append(fresh)
        # And a row of the beginning gets another text.
        table.append(rows([f"id-{done % 300}"], [f"changed {done}"]), on_conflict="update")
        done += 1
        if done == 3:
            print("ready", flush=True)
except TableMismatch as error:
    print(done, error, flush=True)
"""


@contextmanager
def at_work(script, db):
    """A child that uses the table until it is told to open it again."""
    command = [sys.executable, "-c", script, str(db)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_another_process_goes_on_searching_until_the_switch(db, one, two):
    made(db, one)
    with at_work(READER, db) as reader:
        assert reembed(db, "t", pool=two).switched
        done, _, said = reader.stdout.readline().partition(" ")
    assert int(done) >= 3 and "open it again" in said


def test_what_another_process_writes_meanwhile_is_kept(db, one, two):
    made(db, one)
    with at_work(WRITER, db) as writer:
        assert reembed(db, "t", pool=two).switched
        done = int(writer.stdout.readline().partition(" ")[0])
    table = Table.open(db, "t")
    there = table.rows(columns=["id", "text", "vector"]).to_pylist()
    texts = {row["id"]: row["text"] for row in there}
    assert len(texts) == len(there)
    assert {f"new-{i}": f"new text {i}" for i in range(done)}.items() <= texts.items()
    for i in range(max(0, done - 300), done):
        assert texts[f"id-{i % 300}"] == f"changed {i}"
    for row in there:
        assert np.array_equal(row["vector"], vector_of(row["text"], DIM, 2)), row["id"]


class AtTheWorstMoment:
    """A connection whose writing is followed, before its commit, by somebody else's commits."""

    def __init__(self, connection, *outside):
        self._connection, self._outside = connection, list(outside)

    def create_table(self, name, rows, **options):
        batches = self._then_outside(rows)
        return self._connection.create_table(
            name, pa.RecordBatchReader.from_batches(rows.schema, batches), **options
        )

    def _then_outside(self, rows):
        yield from rows
        if self._outside:
            self._outside.pop(0)()


def test_a_writer_without_the_lock_loses_nothing(db, one, two):
    made(db, one)

    def outside():
        return lancedb.connect(db).open_table("t")

    folder = lock.state_dir(db, "t")
    waiting = staged.Staged.open(folder, "t", VectorSpace.of(two.identity))
    work = Reembedding(db, "t", waiting)
    work._connection = AtTheWorstMoment(
        work._connection,
        lambda: outside().add(rows_of(one, 300, 303)),
        lambda: outside().optimize(),
    )

    def fill():
        for found in work.missing():
            waiting.add(found.digests, two.embed(found.texts.to_pylist()))

    with work.locked():
        fill()
        assert work.switch() is None, "the rows of the other writer have no vectors"
        assert Table.open(db, "t").space.model == "One" and Table.open(db, "t").count() == 303
        fill()
        assert work.switch() is None, "the table was compacted meanwhile"
        assert work.switch() is not None
    waiting.close()
    after = Table.open(db, "t")
    assert after.count() == 303 and finds_itself(after, two, "text 0", "text 302")


@pytest.mark.parametrize(
    ("point", "filled", "switched"),
    [
        ("reembed_after_batch:kill@2", 16_384, False),
        ("reembed_after_fill:kill", 20_000, False),
        ("reembed_before_switch:kill", 20_000, False),
        ("reembed_before_switch:soon", 20_000, None),
        ("reembed_after_switch:kill", 20_000, True),
    ],
)
def test_killed_at_any_moment_the_same_command_finishes(db, point, filled, switched):
    oracle = {f"id-{i}": f"text {i} {'x' * (i % 50)}" for i in range(20_000)}
    items = ({"id": key, "text": text} for key, text in oracle.items())
    ingest(items, db=db, table="t", model=EchoLoader(8), workers=1)
    Table.open(db, "t").maintenance.ensure_index("text")
    command = ("table", "reembed", "--db", db, "--table", "t", "--model", "echo", "--workers", "1")
    with memworker(*command, fail=point) as run:
        assert run.wait().code == -9
    found = Table.open(db, "t").space.dim == 384
    assert switched is None or found == switched
    assert stored(db) == oracle
    done = reembed(db, "t", model="echo", workers=1)
    assert (done.switched, done.embedded) == (not found, 20_000 - filled)
    assert found or done.filled_before == filled
    assert stored(db) == oracle
    info = Table.open(db, "t").info()
    assert (info.dim, [index.columns for index in info.indices]) == (384, [("text",)])
    assert not (db / ".memworker/t/reembed").exists()


def test_a_stop_ends_it_and_the_next_run_goes_on(db, one, two):
    made(db, one)
    stop = Stop()
    halted = reembed(db, "t", pool=two, stop=stop, observer=lambda _: stop.set())
    assert (halted.interrupted, halted.switched, halted.rows) == (True, False, 300)
    assert finds_itself(Table.open(db, "t"), one, "text 1")
    assert reembed(db, "t", pool=two).switched


def test_another_model_while_one_is_half_done(db, one, two, wider):
    made(db, one)
    stop = Stop()
    reembed(db, "t", pool=wider, stop=stop, observer=lambda _: stop.set())
    with pytest.raises(TableMismatch, match=r"half way to 'Two' .*32 dimensions.*--discard"):
        reembed(db, "t", pool=two)
    kept = reembed(db, "t", pool=one)
    assert not kept.switched and "half way" in kept.notes[0]
    assert reembed(db, "t", pool=two, discard=True).switched
    assert reembed(db, "t", pool=two).notes == ()


def test_a_text_without_a_vector_is_named_and_the_table_stays(db, one, two):
    table = made(db, one)
    table.append(records(pa.array(["odd"]), pa.array([BAD]), one.embed(["x"])))
    with pytest.raises(StoreError, match=r"1 texts .* row 'odd': .* as it was"):
        reembed(db, "t", pool=two)
    assert finds_itself(table, one, "text 1") and Table.open(db, "t").space == table.space
    table.delete({"id": "odd"})
    again = reembed(db, "t", pool=two)
    assert (again.switched, again.embedded, again.filled_before) == (True, 0, 300)


def test_a_text_over_the_pools_cap_is_named(db, one):
    table = made(db, one)
    table.append(records(pa.array(["long"]), pa.array(["x" * 200]), one.embed(["x"])))
    with (
        EmbeddingPool(Two(2, DIM), workers=1, max_text_bytes=100) as pool,
        pytest.raises(StoreError, match=r"row 'long': it has 200 bytes, over the cap of 100"),
    ):
        reembed(db, "t", pool=pool)


def test_one_job_at_a_time(db, one, two):
    made(db, one)
    with lock.hold_job(lock.state_dir(db, "t")), pytest.raises(TableLocked, match="re-embedding"):
        reembed(db, "t", pool=two)
    assert reembed(db, "t", pool=two).switched


def test_what_cannot_be_is_said_before_anything_is_made(db, one, two):
    with pytest.raises(TableNotFound):
        reembed(db, "t", pool=two)
    made(db, one)
    with pytest.raises(TableNotFound, match="tables there: t"):
        reembed(db, "other", pool=two)
    with pytest.raises(UsageError, match="name the model"):
        reembed(db, "t")


TEXTS = [
    "The cat sat on the mat.",
    "Interest rates rose again this quarter.",
    "She plays the violin in an orchestra.",
    "The recipe needs two eggs and some flour.",
    "A storm closed the mountain road.",
]


def test_real_models_before_and_after(db):
    rows = ({"id": str(i), "text": text} for i, text in enumerate(TEXTS))
    ingest(rows, db=db, table="t", workers=1)
    question = ["What do I need to bake a cake?"]
    for model, precision, dim in (
        ("all-MiniLM-L6-v2", "int8", 384),
        ("wordllama-256", "fp32", 256),
    ):
        report = reembed(db, "t", model=model, precision=precision, workers=1)
        assert (report.switched, report.embedded, report.precision) == (True, 5, precision)
        info = Table.open(db, "t").info()
        assert (info.model, info.precision, info.dim) == (report.model, precision, dim)
        with EmbeddingPool(model, precision=precision, workers=1) as pool:
            table = Table.open_or_create(db, "t", VectorSpace.of(pool.identity))
            assert finds_itself(table, pool, *TEXTS)
            assert table.search(pool.embed(question, kind="query")[0])[0].text == TEXTS[3]
