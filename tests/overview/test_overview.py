"""What a table holds, counted: each row once, whatever the rows are like."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from memworker import errors, ingest, show_table
from memworker.overview import counts
from memworker.overview.sample import nearest, plane
from memworker.store import Table
from tests.store.helpers import DIM, SPACE, batch

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMES = pa.timestamp("us", "UTC")


def stored(folder, texts, *, days=None, users=None, **columns):
    table = Table.open_or_create(folder / "db", "notes", SPACE)
    times = pa.array([DAY + timedelta(days=d) for d in days or [0] * len(texts)], TIMES)
    scopes = {"user_id": pa.array(users or [""] * len(texts))}
    rows = [(f"id-{i}", text) for i, text in enumerate(texts)]
    table.append(batch(rows, created_at=times, scopes=scopes, **columns))
    return table


def page_data(path):
    text = path.read_text()
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_rows_are_counted_by_user_and_day_and_length(tmp_path):
    texts = ["a", "bb", "cccc", "dddd"]
    table = stored(tmp_path, texts, days=[0, 2, 2, 2], users=["ann", "bob", "bob", ""])
    found = show_table(table.db, "notes")
    (users,) = found.scopes.values()
    assert users.named == [("bob", 2), ("ann", 1)] and (users.values, users.without) == (2, 1)
    assert found.days.starts == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert found.days.rows == [1, 0, 3] and users.days == [[0, 0, 2], [1, 0, 0]]
    lengths = found.lengths
    assert (lengths.shortest, lengths.median, lengths.longest) == (1, 2, 4)
    assert lengths.bins == [(1, 1, 1), (2, 2, 1), (3, 3, 0), (4, 4, 2)]
    assert show_table(table.db, "notes", where={"user_id": "bob"}).rows == 2


def test_an_empty_table_and_one_of_one_row_have_pages(tmp_path):
    Table.create(tmp_path / "db", "notes", SPACE)
    out = tmp_path / "page.html"
    found = show_table(tmp_path / "db", "notes", plot=out)
    assert (found.rows, found.days.rows, found.lengths, found.scopes) == (0, [], None, {})
    assert page_data(out)["points"] == []
    stored(tmp_path, ["only"])
    # The page that is there is one of ours, and is replaced.
    assert show_table(tmp_path / "db", "notes", plot=out).sampled == 1
    assert page_data(out)["points"] == [[0, 0]] and page_data(out)["nearest"] == [[]]


def test_what_expired_or_was_superseded_is_left_out_and_told(tmp_path):
    ends = pa.array([None, DAY, None], TIMES)
    over = pa.array([None, None, DAY], TIMES)
    table = stored(tmp_path, ["here", "expired", "old"], expires_at=ends, superseded_at=over)
    out = tmp_path / "page.html"
    found = show_table(table.db, "notes", plot=out)
    assert (found.rows, found.hidden, found.sampled) == (1, 2, 1)
    assert "expired" not in json.dumps(page_data(out)["columns"])


def test_of_chunks_the_texts_are_counted_too(tmp_path):
    (tmp_path / "long.jsonl").write_text(
        "".join(
            json.dumps({"id": f"t{i}", "text": "one two three four. " * 30}) + "\n"
            for i in range(2)
        )
    )
    ingest(
        tmp_path / "long.jsonl", db=tmp_path / "db", table="c", model="echo", workers=1, chunk=40
    )
    out = tmp_path / "page.html"
    found = show_table(tmp_path / "db", "c", plot=out)
    assert found.texts == 2 and found.rows > 4
    assert set(page_data(out)["columns"]["chunk"]) >= {0, 1}


def test_whatever_metadata_says_is_text_on_the_page(tmp_path):
    kinds = ['{"a": [1, {"b": null}]}', '{"big": "%s"}' % ("x" * 900), None, '{"t": "</script>"}']
    table = stored(tmp_path, list("abcd"), metadata_json=pa.array(kinds, pa.string()))
    out = tmp_path / "page.html"
    show_table(table.db, "notes", plot=out)
    told = sorted(page_data(out)["columns"]["metadata"])
    assert told[0] == [] and ["a", '[1, {"b": null}]'] in told[1]
    assert len(told[2][0][1]) == 301 and told[3] == [["t", "</script>"]]


def test_without_texts_the_page_holds_none(tmp_path):
    notes = pa.array(['{"k": "secret-field"}'] * 3, pa.string())
    table = stored(tmp_path, ["secret-text"] * 3, users=["ann"] * 3, metadata_json=notes)
    out = tmp_path / "page.html"
    show_table(table.db, "notes", plot=out, texts=False)
    assert "secret" not in out.read_text() and "id-1" not in out.read_text()
    assert page_data(out)["columns"]["characters"] == [11] * 3


def test_a_sample_is_as_large_as_asked_for_and_the_same_again(tmp_path):
    table = stored(tmp_path, [f"text {i}" for i in range(600)])
    pages = []
    for name in ("a.html", "b.html"):
        found = show_table(table.db, "notes", plot=tmp_path / name, sample=300)
        pages.append(page_data(tmp_path / name))
    assert found.sampled == 300 and pages[0]["columns"] == pages[1]["columns"]
    drawn = np.array([int(each[3:]) for each in pages[0]["columns"]["id"]])
    # From all of the table: of 300 of 600, far more or fewer in a half would be no chance.
    assert len(set(drawn)) == 300 and 110 < (drawn < 300).sum() < 190
    assert page_data(tmp_path / "a.html")["rows"] == 600
    assert show_table(table.db, "notes", plot=tmp_path / "c.html", sample=0).sampled == 0
    with pytest.raises(errors.UsageError, match="sample"):
        show_table(table.db, "notes", plot=tmp_path / "d.html", sample=5001)


def test_rows_without_a_vector_are_off_the_map_and_told(tmp_path):
    table = stored(tmp_path, ["a", "b", "c"])
    table._handle.update(where="id = 'id-1'", values_sql={"vector": "NULL"})
    out = tmp_path / "page.html"
    assert show_table(table.db, "notes", plot=out).sampled == 2
    assert page_data(out)["left_out"] == 1 and page_data(out)["rows"] == 3


@pytest.mark.parametrize(
    "gone", [("user_id", "run_id"), ("created_at",), ("text",), ("metadata", "expires_at")], ids=str
)
def test_what_another_program_dropped_is_said_and_the_rest_is_shown(tmp_path, gone):
    table = stored(tmp_path, ["a", "bb"], users=["ann", "bob"])
    table._handle.drop_columns(list(gone))
    out = tmp_path / "page.html"
    found = show_table(table.db, "notes", plot=out)
    assert set(found.dropped) == set(gone) and (found.rows, found.sampled) == (2, 2)
    assert bool(found.lengths) == ("text" not in gone)
    assert bool(found.days.rows) == ("created_at" not in gone)
    assert bool(found.scopes) == ("user_id" not in gone)


def test_more_names_and_rows_than_are_told_apart_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "_MOST_VALUES", 20)
    users = [f"user {i:02}" for i in range(40)]
    table = stored(tmp_path, ["x"] * 40, users=users)
    users = show_table(table.db, "notes").scopes["user_id"]
    assert not users.exact and users.values == 20
    assert len(users.named) + users.other_rows == 40
    monkeypatch.setattr(counts, "MOST_ROWS", 25)
    monkeypatch.setattr("memworker.overview.show.MOST_ROWS", 25)
    found = show_table(table.db, "notes")
    assert (found.rows, found.counted, sum(found.days.rows)) == (40, 25, 25)


@pytest.mark.parametrize(
    ("days", "unit"), [(91, "day"), (400, "week"), (2000, "month"), (9000, "year")]
)
def test_long_times_have_wide_bars(tmp_path, days, unit):
    table = stored(tmp_path, ["a", "b"], days=[0, days])
    found = show_table(table.db, "notes").days
    assert found.unit == unit and len(found.rows) <= 92
    assert (found.rows[0], found.rows[-1], sum(found.rows)) == (1, 1, 2)


def test_files_of_others_are_not_replaced(tmp_path):
    table = stored(tmp_path, ["a"])
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with pytest.raises(errors.UsageError, match="--overwrite"):
        show_table(table.db, "notes", plot=mine)
    assert mine.read_text() == "mine"
    assert show_table(table.db, "notes", plot=mine, overwrite=True).plot == str(mine)


def test_the_plane_is_the_one_along_which_vectors_differ_most():
    random = np.random.default_rng(1)
    flat = np.zeros((50, DIM), np.float32)
    flat[:, 3], flat[:, 5] = random.normal(size=50) * 9, random.normal(size=50)
    for vectors in (flat, flat[:6]):  # more rows than dimensions, and fewer
        points, spread = plane(vectors)
        assert spread > 0.999
        along = np.corrcoef([x for x, _ in points], vectors[:, 3])[0, 1]
        assert abs(along) > 0.999 and np.abs(points).max() == 1
    assert plane(flat[:0]) == ([], 0.0) and plane(flat[:1])[0] == [(0, 0)]
    assert plane(np.ones((4, DIM), np.float32))[0] == [(0, 0)] * 4


def test_the_nearest_are_the_nearest():
    vectors = np.random.default_rng(2).normal(size=(600, DIM)).astype(np.float32)
    found = nearest(vectors, 3)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    assert [[place for place, _ in each] for each in found] == np.argsort(-alike)[:, :3].tolist()
    assert nearest(vectors[:1], 3) == [[]] and nearest(vectors[:0], 3) == []
