"""Long texts cut into chunks: what is written, written anew, moved and removed; kills between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memworker import Chunking, EmbeddingPool, Memory, Table, errors, ingest, reembed, verify_table
from memworker.ingestion import embed_to_file
from memworker.ingestion.chunks import Cutting
from memworker.splitting.splitter import Splitter
from memworker.store.repair import repair_table
from tests import PATIENCE_S
from tests.ingestion.spaces import One
from tests.models.tiny import make_bert
from tests.store.damaging import zero

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def text_of(n, start=0):
    """Sentences of ten words each, all different."""
    return " ".join(
        f"Sentence {start + i} says {' '.join(WORDS[(start + i * k) % 10] for k in range(1, 7))}."
        for i in range(n)
    )


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


@pytest.fixture
def run(tmp_path, pool):
    def run(inputs, **options):
        given = {"chunk": 32, "pool": pool, **options}
        return ingest(inputs, db=tmp_path / "db", table="t", **given)

    return run


def rows_of(tmp_path, *columns):
    names = ["parent_id", "chunk", "text", "char_start", "char_end", "last_chunk", *columns]
    rows = Table.open(tmp_path / "db", "t").rows(columns=names).to_pylist()
    return sorted(rows, key=lambda row: (row["parent_id"], row["chunk"]))


def must_hold(tmp_path, documents):
    """The table has all of the documents, once, by their offsets, and nothing else."""
    found = {}
    for row in rows_of(tmp_path, "id"):
        found.setdefault(row["parent_id"], []).append(row)
    assert set(found) == set(documents)
    ids = [row["id"] for rows in found.values() for row in rows]
    assert len(set(ids)) == len(ids)
    for parent, rows in found.items():
        text, covered = documents[parent], 0
        assert [row["chunk"] for row in rows] == list(range(len(rows)))
        assert [row["last_chunk"] for row in rows] == [False] * (len(rows) - 1) + [True]
        for row in rows:
            assert text[row["char_start"] : row["char_end"]] == row["text"]
            assert not text[covered : row["char_start"]].strip()
            covered = row["char_end"]
        assert not text[covered:].strip()


def jsonl(path, documents, **more):
    lines = (json.dumps({"id": i, "text": t, **more}) + "\n" for i, t in documents.items())
    path.write_text("".join(lines))
    return path


def test_each_chunk_is_a_row_and_a_second_run_writes_none(run, tmp_path):
    documents = {"a": text_of(40), "b": "short one", "ä'": text_of(9, 50)}
    path = jsonl(tmp_path / "in.jsonl", documents, tag="x")
    first = run([path])
    assert first.read == 3 and first.chunks == first.written == first.embedded > 15
    must_hold(tmp_path, documents)
    again = run([path])
    assert (again.read, again.embedded, again.written, again.removed) == (3, 0, 0, 0)
    assert again.duplicates == again.chunks == first.chunks
    assert again.table_version == first.table_version
    metadata = Table.open(tmp_path / "db", "t").rows(columns=["metadata"])["metadata"]
    assert set(metadata.to_pylist()) == {'{"tag":"x"}'}


def test_an_edit_embeds_what_is_new_alone_and_takes_one_commit(run, tmp_path):
    documents = {"a": text_of(60), "b": text_of(20, 100), "c": text_of(20, 200)}
    first = run([jsonl(tmp_path / "in.jsonl", documents)])
    documents["a"] = "Something was put in front of all. " + documents["a"]
    documents["b"] = documents["b"][: len(documents["b"]) // 2]
    edited = run([jsonl(tmp_path / "in.jsonl", documents)])
    assert edited.table_version == first.table_version + 1
    assert 0 < edited.embedded == edited.written < 12
    assert edited.moved > 0 and edited.removed > 0
    must_hold(tmp_path, documents)
    assert run([tmp_path / "in.jsonl"]).written == 0


def test_equal_chunks_of_one_text_are_rows_of_their_own(run, tmp_path):
    documents = {
        "a": "\n\n".join(["The very same words stand here again and again and again."] * 9)
    }
    report = run([{"id": "a", "text": documents["a"]}])
    assert report.reused > 0
    must_hold(tmp_path, documents)
    assert run([{"id": "a", "text": documents["a"]}]).written == 0


def test_rows_without_ids_are_cut_too(run, tmp_path):
    assert run([{"text": text_of(12)}, {"text": text_of(12, 30)}]).read == 2
    assert len({row["parent_id"] for row in rows_of(tmp_path)}) == 2
    assert run([{"text": text_of(12)}]).written == 0


def test_of_an_id_that_comes_twice_the_first_counts_and_with_update_the_last(run, tmp_path):
    rows = [
        {"id": "x", "text": "one"},
        {"id": "y", "text": "y"},
        {"id": "x", "text": "two"},
        {"id": "y", "text": "y"},
    ]
    for _ in range(2):
        report = run(rows)
        assert report.conflicts == 1 and "came before in this input" in reasons(report)[0]
        must_hold(tmp_path, {"x": "one", "y": "y"})
    for _ in range(3):
        run(rows, on_conflict="update")
        must_hold(tmp_path, {"x": "two", "y": "y"})
    run(rows[:1])
    must_hold(tmp_path, {"x": "one", "y": "y"})
    kept = run([{"id": "x", "text": "three"}], on_conflict="reject")
    assert (kept.conflicts, kept.written) == (1, 0) and "--on-conflict update" in reasons(kept)[0]
    assert run([{"id": "x", "text": "three"}], on_conflict="skip").rejects is None
    must_hold(tmp_path, {"x": "one", "y": "y"})


def reasons(report):
    return [json.loads(line)["reason"] for line in Path(report.rejects).read_text().splitlines()]


def test_a_text_of_another_scope_is_refused(run, tmp_path):
    run([{"id": "a", "text": text_of(9), "who": "ann"}], scope={"user_id": "who"})
    stolen = run([{"id": "a", "text": text_of(9, 5), "who": "bob"}], scope={"user_id": "who"})
    assert (stolen.conflicts, stolen.written) == (1, 0)
    assert "another scope" in reasons(stolen)[0]
    must_hold(tmp_path, {"a": text_of(9)})


def test_a_table_is_of_one_way_of_cutting(run):
    run([{"id": "a", "text": text_of(9)}])
    for other in (None, 16, Chunking(32, 4), Chunking(32, contextual=True)):
        with pytest.raises(errors.TableMismatch, match="--chunk 32"):
            run([{"id": "b", "text": "b"}], chunk=other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk": 32, "overlap": 32}, "--overlap.*below --chunk"),
        ({"chunk": 3}, "--chunk.*at least 8"),
        ({"chunk": "much"}, "--chunk.*number of tokens"),
        ({"chunk": True}, "number of tokens"),
        ({"chunk": None, "overlap": 3}, "--overlap.*--chunk.*give both"),
        ({"chunk": 32, "overlap": -1}, "--overlap.*whole number"),
    ],
)
def test_what_cannot_be_cut_so_is_refused(run, options, words):
    with pytest.raises(errors.UsageError, match=words):
        run([{"text": "x"}], **options)


def test_chunks_overlap_by_no_more_than_was_asked(run, tmp_path):
    text = text_of(40)
    run([{"id": "a", "text": text}], overlap=10)
    rows = rows_of(tmp_path)
    for one, two in zip(rows, rows[1:], strict=False):
        shared = text[two["char_start"] : one["char_end"]]
        assert 0 < len(shared.split()) <= 10 and two["char_end"] > one["char_end"]


def test_context_is_embedded_and_not_stored_and_search_tells_it(run, tmp_path, pool):
    page = tmp_path / "notes.jsonl"
    text = f"# Birds\n\n{text_of(6)}\n\n## Owls\n\n{text_of(8, 30)}"
    jsonl(page, {"a": text}, title="Zoo")
    run([page], chunk=Chunking(32, contextual=True, markdown=True))
    must_hold(tmp_path, {"a": text})
    contexts = {row["context"] for row in rows_of(tmp_path, "context")}
    assert contexts >= {"Zoo", "Zoo > Birds", "Zoo > Birds > Owls"}
    table = Table.open(tmp_path / "db", "t")
    row = next(
        r
        for r in table.rows(columns=["text", "context", "vector"]).to_pylist()
        if r["context"] == "Zoo > Birds"
    )
    wanted = pool.embed([f"{row['context']}\n\n{row['text']}"])[0]
    assert row["vector"] == pytest.approx(wanted.tolist())
    # Another title is another context, and so other chunks.
    jsonl(page, {"a": text}, title="Park")
    assert run([page], chunk=Chunking(32, contextual=True, markdown=True)).removed > 0
    hit = table.search(pool.embed(["x"])[0], limit=1)[0]
    assert hit.context.startswith("Park") and hit.parent_id == "a"


def test_a_memory_over_chunks_gives_each_text_once(run, tmp_path, pool):
    rows = [{"id": f"d{i}", "text": text_of(20, 40 * i), "who": "ann"} for i in range(4)]
    run(rows, scope={"user_id": "who"})
    with Memory(tmp_path / "db", table="t", pool=pool) as memory:
        for mode in ("vector", "text", "hybrid"):
            asked = {"filters": {"user_id": "ann"}, "limit": 4, "mode": mode}
            found = memory.search("Sentence alpha", group=True, **asked)["results"]
            assert {each["parent_id"] for each in found} == {f"d{i}" for i in range(4)}
            assert found[0]["char_end"] > found[0]["char_start"]


def test_a_splitter_that_dies_is_started_again(run, tmp_path, monkeypatch):
    killed = []
    started = Splitter._started

    def once_killed(self):
        process = started(self)
        if not killed:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(Splitter, "_started", once_killed)
    documents = {"a": text_of(30)}
    run([{"id": "a", "text": documents["a"]}])
    assert killed
    must_hold(tmp_path, documents)


def test_a_splitter_that_dies_again_and_again_is_an_error(run, monkeypatch):
    monkeypatch.setenv("MEMWORKER_FAIL", "splitting:kill")
    with pytest.raises(errors.PoolError, match="cuts texts into chunks ended with"):
        run([{"id": "a", "text": text_of(3)}])


def test_texts_go_to_the_splitter_some_megabytes_at_a_time(monkeypatch):
    monkeypatch.setattr("memworker.splitting.splitter._BYTES_AT_ONCE", 100)
    from memworker.ingestion.readers import read_records

    texts = [text_of(i % 5, i) or "-" for i in range(30)]
    batches = read_records({"id": str(i), "text": text} for i, text in enumerate(texts))
    with Cutting(Chunking(16), None) as cutting:
        parts = list(cutting.cut(batches))
    assert len(parts) > 5 and sum(part.batch.read for part in parts) == 30
    assert all(part.texts[0] == 0 for part in parts)
    found = [p for part in parts for p in part.rows["parent_id"].to_pylist()]
    assert list(dict.fromkeys(found)) == [str(i) for i in range(30)]


KILLED = """
import sys
from memworker import ingest
ingest([sys.argv[1]], db=sys.argv[2], table="t", model="echo", workers=1, chunk=32)
"""


@pytest.mark.parametrize("point", ["before_commit", "after_add", "after_commit"])
def test_a_run_that_is_killed_leaves_whole_texts_and_the_next_ends_it(run, tmp_path, point):
    documents = {str(i): text_of(30, i) for i in range(40)}
    path = jsonl(tmp_path / "in.jsonl", documents)
    run([path])
    edited = {
        i: (f"New words begin text {i}. " if int(i) % 2 else "") + t for i, t in documents.items()
    }
    jsonl(path, edited)
    environment = os.environ | {"MEMWORKER_FAIL": f"{point}:kill"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, tmp_path / "db"],
        env=environment,
        timeout=PATIENCE_S,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    # One commit holds all of this: it has come or it has not.
    must_hold(tmp_path, documents if point == "before_commit" else edited)
    run([path])
    must_hold(tmp_path, edited)
    assert run([path]).written == 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of 40 tokens, whose words are w0 to w58."""
    return make_bert(tmp_path_factory.mktemp("tiny") / "model")


def long_texts():
    random = np.random.default_rng(3)
    return {
        str(i): " ".join(f"w{n}" for n in random.integers(0, 59, 10 + 40 * i)) for i in range(6)
    }


def test_no_token_is_without_a_vector_where_texts_are_cut_and_a_run_says_so_where_not(
    tiny, tmp_path
):
    texts = long_texts()
    path = jsonl(tmp_path / "in.jsonl", texts)
    given = {"model": tiny, "workers": 1, "db": tmp_path / "db"}
    plain = ingest([path], table="plain", **given)
    assert plain.truncated == 5
    assert any("5 of 6 texts are longer" in n and "--chunk model" in n for n in plain.notes)
    embedded = embed_to_file([path], tmp_path / "v.npy", model=tiny, workers=1)
    assert any("5 of 6 texts are longer" in note for note in embedded.notes)
    cut = ingest([path], table="t", chunk="model", **given)
    assert cut.truncated == 0 and not cut.notes
    must_hold(tmp_path, texts)
    # A token is a word of these texts, and each was embedded once.
    assert cut.tokens == sum(len(text.split()) for text in texts.values()) > plain.tokens
    assert Table.open(tmp_path / "db", "t").chunking == Chunking(40)
    with pytest.raises(errors.UsageError, match="longer than the 40"):
        ingest([path], table="u", chunk=41, **given)


def test_a_model_that_counts_in_its_own_way_is_refused(tmp_path):
    with pytest.raises(errors.UsageError, match="cut the texts before"):
        ingest([{"text": "x"}], db=tmp_path, table="t", model=One(1, 8), workers=1, chunk=32)


def test_chunks_with_context_get_another_models_vectors_and_take_edits_after(run, tmp_path, tiny):
    text = f"# Birds\n\n{text_of(20)}"
    rows = [{"id": "a", "text": text, "title": "Zoo"}]
    cut = Chunking(32, contextual=True, markdown=True)
    run(rows, chunk=cut)
    with EmbeddingPool(tiny, workers=1) as other:
        assert reembed(tmp_path / "db", "t", pool=other).switched
        table = Table.open(tmp_path / "db", "t")
        assert table.chunking.same_as(cut)
        found = table.rows(columns=["text", "context", "vector"]).to_pylist()
        wanted = other.embed([f"{row['context']}\n\n{row['text']}" for row in found])
        np.testing.assert_allclose([row["vector"] for row in found], wanted, atol=1e-6)
        with pytest.raises(errors.TableMismatch):
            run(rows, chunk=cut)
        same = ingest(rows, db=tmp_path / "db", table="t", pool=other, chunk=cut)
    assert same.read == 1
    must_hold(tmp_path, {"a": text})


def test_a_table_of_chunks_is_verified_tended_and_deleted_from_by_text(run, tmp_path):
    documents = {"a": text_of(20), "b": text_of(20, 90)}
    rows = [{"id": i, "text": t} for i, t in documents.items()]
    run(rows)
    run([{"id": "a", "text": text_of(18)}])
    assert verify_table(tmp_path / "db", "t").healthy
    table = Table.open(tmp_path / "db", "t")
    table.optimize()
    assert run(rows).removed > 0
    must_hold(tmp_path, documents)
    assert table.delete({"parent_id": "a"}) > 3
    must_hold(tmp_path, {"b": documents["b"]})
    assert run(rows).written > 3
    must_hold(tmp_path, documents)


def test_a_chunk_that_is_gone_is_written_again(run, tmp_path):
    rows = [{"id": "a", "text": text_of(20)}]
    run(rows)
    assert Table.open(tmp_path / "db", "t").delete({"chunk": {"in": [1, 3]}}) == 2
    again = run(rows)
    assert (again.written, again.embedded) == (2, 2)
    must_hold(tmp_path, {"a": text_of(20)})


def memworker(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "memworker", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_the_command_line_cuts_searches_and_groups(tmp_path):
    page = tmp_path / "owls.md"
    page.write_text(f"# Owls\n\n{text_of(20)}\n\n## Nests\n\n{text_of(9, 70)}\n")
    where = ["--db", str(tmp_path / "db"), "--table", "t"]
    command = ["ingest", str(page), *where, "--model", "echo", "--workers", "1", "--json"]
    done = memworker(*command, "--chunk", "40", "--overlap", "5", "--contextual")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["chunks"] == report["written"] > 5
    edited = page.read_text().replace("Sentence 3 ", "Sentence three ")
    page.write_text(edited)
    done = memworker(*command, "--chunk", "40", "--overlap", "5", "--contextual")
    assert 0 < json.loads(done.stdout)["written"] < report["written"]
    shown = memworker("search", "owls", *where, "--group", "--limit", "3", "--json")
    (hit,) = json.loads(shown.stdout)["hits"]
    assert hit["parent_id"] == str(page) and edited[hit["char_start"] :].startswith(hit["text"])
    for wrong, words in (
        (["--chunk", "40"], "--overlap 5"),
        (["--overlap", "5"], "give both"),
        (["--chunk", "40", "--overlap", "40"], "below --chunk"),
        (["--markdown"], "give --chunk"),
    ):
        failed = memworker(*command, *wrong)
        assert (
            failed.returncode in (1, 2) and words in failed.stderr and "Trace" not in failed.stderr
        )


def test_a_damaged_chunk_leaves_by_a_repair_and_the_same_ingest_brings_it_back(tmp_path, run):
    documents = [{"id": f"d{i}", "text": text_of(20, 20 * i)} for i in range(6)]
    written = run(documents).written
    table = Table.open(tmp_path / "db", "t")
    (row,) = table.rows({"parent_id": "d3", "chunk": 1}, columns=["id", "vector"]).to_pylist()
    raw = np.float32(row["vector"]).tobytes()
    (path,) = (tmp_path / "db" / "t.lance" / "data").iterdir()
    at = path.read_bytes().index(raw)
    zero(path, at, len(raw))
    assert not verify_table(tmp_path / "db", "t").healthy
    done = repair_table(tmp_path / "db", "t")
    assert done.healthy and done.removed == 1
    left = rows_of(tmp_path, "id")
    assert len(left) == written - 1 and row["id"] not in {each["id"] for each in left}
    again = run(documents)
    assert (again.written, again.duplicates, again.removed) == (1, written - 1, 0)
    must_hold(tmp_path, {each["id"]: each["text"] for each in documents})
    assert verify_table(tmp_path / "db", "t").healthy
