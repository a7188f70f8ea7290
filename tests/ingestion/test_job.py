"""The main job on real files, a real pool and a real LanceDB directory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memworker import EmbeddingPool, Table, errors, ingest
from memworker.ingestion.export import embed_to_file
from tests import PATIENCE_S

SAMPLE = Path(__file__).parents[2] / "memworker/data/memories.jsonl.gz"


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*inputs, tmp_path, **options):
    return ingest(
        list(inputs), db=tmp_path / "db", table="t", model="echo", **{"workers": 1, **options}
    )


def texts_of(tmp_path):
    rows = Table.open(tmp_path / "db", "t").rows(columns=["id", "text"])
    return dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))


def reasons(report):
    return [json.loads(line)["reason"] for line in Path(report.rejects).read_text().splitlines()]


def total(report):
    return report.written + report.duplicates + report.conflicts + report.rejected


def test_every_row_lands_once_and_a_second_run_writes_none(tmp_path):
    first = run(SAMPLE, tmp_path=tmp_path, workers=2)
    assert (first.read, first.written, first.embedded) == (4000, 4000, 4000)
    assert first.complete and first.seconds > 0 and first.table_version
    again = run(SAMPLE, tmp_path=tmp_path)
    assert (again.read, again.written, again.embedded, again.duplicates) == (4000, 0, 0, 4000)
    with gzip.open(SAMPLE) as file:
        want = {row["id"]: row["text"] for row in map(json.loads, file)}
    assert texts_of(tmp_path) == want


def test_a_larger_input_adds_what_is_new(tmp_path):
    assert run(SAMPLE, tmp_path=tmp_path, limit=100).written == 100
    more = run(SAMPLE, tmp_path=tmp_path, limit=250)
    assert (more.written, more.duplicates) == (150, 100)


def test_fields_scopes_and_metadata_are_kept(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"key": 7, "body": "likes tea", "owner": "alice", "n": 3, "tags": ["a"]},
        {"key": 8, "body": "likes rum", "owner": "bob", "n": 4},
    )
    run(path, tmp_path=tmp_path, text_field="body", id_field="key", scope={"user_id": "owner"})
    table = Table.open(tmp_path / "db", "t")
    (row,) = table.rows({"user_id": "alice"}).to_pylist()
    assert (row["id"], row["text"]) == ("7", "likes tea")
    assert json.loads(row["metadata"]) == {"n": 3, "tags": ["a"]}
    assert table.count({"metadata.n": {"gt": 3}}) == 1


def test_rows_without_id_are_told_apart_by_their_text(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y"}, {"text": "x"})
    report = run(path, tmp_path=tmp_path)
    assert (report.written, report.duplicates) == (2, 1)


def test_records_from_python(tmp_path):
    rows = ({"id": str(number), "text": f"text {number}"} for number in range(10))
    report = ingest(rows, db=tmp_path / "db", table="t", model="echo", workers=1)
    assert report.written == 10


def test_an_open_pool_is_used_and_stays_open(tmp_path):
    with EmbeddingPool("echo", workers=1) as pool:
        for name in ("one", "two"):
            records = [{"text": f"{name} {number}"} for number in range(50)]
            report = ingest(records, db=tmp_path / "db", table="memories", pool=pool)
            assert (report.written, report.workers, report.model) == (50, 1, "echo")
            # The second report counts its own work alone.
            assert report.embedded == 50 and report.tokens == sum(
                len(record["text"]) for record in records
            )
        assert pool.embed(["still open"]).shape == (1, pool.dim)
    assert Table.open(tmp_path / "db", "memories").count() == 100


def test_bad_rows_are_listed_and_good_rows_land(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": "1", "text": "good"}\n{broken\n{"id": "3", "text": " "}\n'
        '{"id": "4"}\n{"id": "5", "text": "good too"}\n'
    )
    report = run(path, tmp_path=tmp_path)
    assert (report.read, report.written, report.rejected) == (5, 2, 3)
    assert total(report) == report.read and not report.complete
    lines = [json.loads(line) for line in Path(report.rejects).read_text().splitlines()]
    assert [line["line"] for line in lines] == [2, 3, 4]
    assert all(line["path"] == str(path) and line["reason"] for line in lines)


def test_a_clean_run_takes_the_old_reject_list_away(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{broken\n{"text": "good"}\n')
    rejects = Path(run(path, tmp_path=tmp_path).rejects)
    jsonl(path, {"text": "good"})
    assert run(path, tmp_path=tmp_path).rejects is None and not rejects.exists()


def test_on_error_stop_names_the_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{broken\n')
    with pytest.raises(errors.RowRejected, match=r"a\.jsonl:2"):
        run(path, tmp_path=tmp_path, on_error="stop")


@pytest.mark.parametrize(
    ("policy", "conflicts", "updated", "text", "complete"),
    [("reject", 1, 0, "old", False), ("skip", 1, 0, "old", True), ("update", 1, 1, "new", True)],
)
@pytest.mark.parametrize("same_run", [True, False], ids=["same-run", "later-run"])
def test_same_id_other_text(tmp_path, policy, conflicts, updated, text, complete, same_run):
    old = jsonl(tmp_path / "old.jsonl", {"id": "a", "text": "old"}, {"id": "b", "text": "b"})
    new = jsonl(tmp_path / "new.jsonl", {"id": "a", "text": "new"}, {"id": "b", "text": "b"})
    if same_run:
        report = run(old, new, tmp_path=tmp_path, on_conflict=policy)
        assert report.written == 2
    else:
        run(old, tmp_path=tmp_path)
        report = run(new, tmp_path=tmp_path, on_conflict=policy)
        assert report.written == 0
    assert (report.conflicts, report.updated, report.duplicates) == (conflicts, updated, 1)
    assert report.complete is complete and total(report) == report.read
    assert texts_of(tmp_path) == {"a": text, "b": "b"}
    if policy == "reject":
        assert "another text" in reasons(report)[0]


def test_a_table_of_another_model_is_refused_before_any_work(tmp_path):
    from memworker.pool import EchoLoader

    run(SAMPLE, tmp_path=tmp_path, limit=3)
    with pytest.raises(errors.TableMismatch, match="384"):
        ingest([SAMPLE], db=tmp_path / "db", table="t", model=EchoLoader(dim=16), workers=1)


def test_nothing_is_made_when_there_is_nothing_to_read(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for path, error in [
        (tmp_path / "empty.jsonl", errors.NoRows),
        (tmp_path / "none.jsonl", errors.InputNotFound),
        (jsonl(tmp_path / "b.jsonl", {"body": "x"}), errors.MissingField),
    ]:
        with pytest.raises(error):
            run(path, tmp_path=tmp_path)
    assert not (tmp_path / "db").exists()


def test_only_bad_rows_make_no_table(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{broken\n")
    report = run(path, tmp_path=tmp_path)
    assert (report.read, report.rejected, report.written) == (1, 1, 0)
    with pytest.raises(errors.TableNotFound):
        Table.open(tmp_path / "db", "t")


def test_unwritable_database(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.StoreUnwritable):
        ingest([SAMPLE], db=tmp_path / "file" / "db", table="t", model="echo")


@pytest.mark.parametrize("option", [{"on_error": "x"}, {"on_conflict": "x"}, {"workers": 0}])
def test_bad_options(tmp_path, option):
    with pytest.raises(errors.UsageError):
        run(SAMPLE, tmp_path=tmp_path, **option)


def test_vectors_to_npy_keep_the_rows_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{broken\n{"text": ""}\n{"text": "four"}\n[1]\n')
    report = embed_to_file([path], tmp_path / "v.npy", model="echo", workers=1)
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, False, False, True]
    assert vectors[[0, 2, 3], 1].tolist() == [3, 0, 4]
    assert (report.read, report.embedded, report.rejected) == (5, 3, 2)


def test_vectors_to_parquet_are_null_where_rejected(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "text": "one"}\n{broken\n{"text": "three"}\n')
    embed_to_file([path], tmp_path / "v.parquet", model="echo", workers=1)
    rows = pq.read_table(tmp_path / "v.parquet").to_pylist()
    assert [(row["id"], row["text"]) for row in rows] == [
        *(("x", "one"), (None, None), (None, "three")),
    ]
    assert [row["vector"] is None for row in rows] == [False, True, False]


def test_an_unfinished_vectors_file_does_not_appear(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{broken\n')
    with pytest.raises(errors.RowRejected):
        embed_to_file([path], tmp_path / "v.npy", model="echo", workers=1, on_error="stop")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "v.npy"))] in (
        [],
        ["v.npy.rejects.jsonl"],
    )


def test_odd_texts_come_through_whole(data_dir, tmp_path):
    edge = data_dir / "edge/edge_texts.jsonl"
    report = embed_to_file([edge], tmp_path / "v.npy", model="echo", workers=2)
    rows = len(edge.read_bytes().splitlines())
    assert np.load(tmp_path / "v.npy").shape[0] == report.read == rows
    landed = run(edge, tmp_path=tmp_path, workers=2)
    assert total(landed) == landed.read == rows


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(data_dir, tmp_path):
    code = (
        "import sys, threading\n"
        "from memworker.ingestion.export import embed_to_file\n"
        "peak = 0\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('RssAnon'))\n"
        "stop = threading.Event()\n"
        "def watch():\n"
        "    global peak\n"
        "    while not stop.wait(0.02): peak = max(peak, anonymous())\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        "report = embed_to_file(sys.argv[1:2], sys.argv[2], model='echo', workers=2)\n"
        "stop.set(); thread.join()\n"
        "print(report.read, peak)\n"
    )
    command = [sys.executable, "-c", code, data_dir / "mix_open.jsonl.gz", tmp_path / "v.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    rows, peak_kib = map(int, done.stdout.split())
    assert rows == 260_000 and peak_kib < 600 * 1024, done.stderr


def test_names_are_checked_before_anything_is_made(tmp_path):
    for db, table in [(tmp_path / "db", "../../evil"), ("hdfs://bucket/db", "t")]:
        with pytest.raises(errors.UsageError):
            ingest([SAMPLE], db=db, table=table, model="echo", workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [{"model": "no-such-model"}, {"distance": "l2"}, {"memory": "junk"}, {"workers": 1.5}]
)
def test_a_refused_run_leaves_the_last_rejects_alone(tmp_path, option):
    path = tmp_path / "a.jsonl"
    path.write_text('{broken\n{"text": "good"}\n')
    rejects = Path(run(path, tmp_path=tmp_path).rejects)
    options = {"db": tmp_path / "db", "table": "t", "model": "echo", **option}
    with pytest.raises(errors.MemworkerError):
        ingest([path], **options)
    assert rejects.exists()
    with pytest.raises(errors.MemworkerError):
        ingest([path], **{**options, "db": tmp_path / "other"})
    assert not (tmp_path / "other").exists()


def test_records_are_read_on_the_callers_thread(tmp_path):
    import threading

    threads = set()

    def rows():
        for number in range(20_000):
            threads.add(threading.get_ident())
            yield {"id": str(number), "text": f"text {number}"}

    report = ingest(rows(), db=tmp_path / "db", table="t", model="echo", workers=1)
    assert report.written == 20_000 and threads == {threading.get_ident()}


def test_a_first_record_that_is_none_costs_itself_alone(tmp_path):
    report = run(None, {"text": "one"}, {"text": "two"}, tmp_path=tmp_path)
    assert (report.read, report.written, report.rejected) == (3, 2, 1)


def test_an_array_that_holds_no_texts_is_refused_in_our_words(tmp_path):
    with pytest.raises(errors.UsageError, match="2 dimensions where texts have one"):
        ingest(np.zeros((2, 2)), db=tmp_path / "db", table="t", model="echo")


def test_arrow_tables_are_records_and_one_record_is_not(tmp_path):
    import pyarrow as pa

    table = pa.table({"id": ["1", "2"], "text": ["one", "two"]})
    assert ingest(table, db=tmp_path / "db", table="t", model="echo", workers=1).written == 2
    for wrong in ({"text": "one"}, 7):
        with pytest.raises(errors.UsageError, match="iterable of records"):
            ingest(wrong, db=tmp_path / "db", table="t", model="echo")


def test_where_the_seconds_went(tmp_path):
    report = run(SAMPLE, tmp_path=tmp_path, limit=500)
    assert set(report.time) == {"read", "tokenize", "encode", "wait", "write"}
    assert report.time["read"] > 0 and report.time["write"] > 0
    assert report.gemm_limit_ratio is None


def test_an_update_run_again_changes_nothing(tmp_path):
    rows = [{"id": "a", "text": "one"}, {"id": "a", "text": "two"}, {"id": "b", "text": "b"}]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    for _ in range(3):
        report = run(path, tmp_path=tmp_path, on_conflict="update")
        assert texts_of(tmp_path) == {"a": "two", "b": "b"}
        assert total(report) == report.read == 3


def test_a_job_keeps_little_of_the_versions_it_makes(tmp_path, monkeypatch):
    """Each commit adds a fragment that all later versions name, and LanceDB keeps what it read."""
    asked = []
    monkeypatch.setattr(Table, "keep_little", lambda table: asked.append(table.name))
    for rows in (["one"], ["two"]):
        ingest([{"text": text} for text in rows], db=tmp_path, table="t", model="echo", workers=1)
    assert asked == ["t", "t"]
