"""Fields by name, by path and by template; of objects and of columns alike."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memworker import Table, ingest
from memworker.errors import MissingField, UsageError
from memworker.ingestion import Fields
from memworker.ingestion.readers import read, read_options, read_records, read_sources
from memworker.ingestion.readers.paths import found

ROWS = [
    {"n": 1, "title": "Tea", "body": "likes tea", "meta": {"author": "ann", "year": 2020}},
    {"n": 2, "title": None, "body": "hates nuts", "meta": {"author": "bob", "year": 2021}},
    {"n": 3, "title": "Rain", "meta": {"author": "bob"}},
    {"n": 4, "meta": {"author": "bob", "year": 3}},
]


@pytest.fixture(params=["jsonl", "parquet", "arrow", "records"])
def given(request, tmp_path):
    """The same rows as lines, as columns with structs, and as Python records."""
    if request.param == "records":
        return ROWS
    path = tmp_path / f"in.{request.param}"
    table = pa.Table.from_pylist(ROWS, pa.Table.from_pylist(ROWS[:1]).schema)
    if request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif request.param == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return path


def taken(given, fields):
    """Return (id, text, metadata) of the rows, the reasons of the others, and the notes."""
    options = read_options(fields)
    if isinstance(given, list):
        batches = list(read_records(given, options))
    else:
        batches = list(read_sources(found([given]).sources, options))
    rows = [
        (row["id"], row["text"], json.loads(row["metadata"] or "{}"))
        for batch in batches
        for row in batch.rows.to_pylist()
    ]
    return rows, [each.reason for batch in batches for each in batch.rejects], options.told.notes


def test_a_template_makes_one_text_of_fields_and_counts_those_without_a_value(given):
    fields = Fields.of(text_template="{{{title}}}\n{body}", id_field="n")
    rows, reasons, notes = taken(given, fields)
    assert [(i, text) for i, text, _ in rows] == [
        ("1", "{Tea}\nlikes tea"),
        ("2", "{}\nhates nuts"),
        ("3", "{Rain}\n"),
    ]
    assert reasons == ["none of the fields of the text has a value: title, body"]
    (note,) = notes
    assert "in 2 rows" in note and "title 1" in note and "body 1" in note


def test_several_text_fields_stand_line_by_line_without_those_that_are_not_there(given):
    rows, reasons, _ = taken(given, Fields.of(["title", "body"], "n"))
    assert [text for _, text, _ in rows] == ["Tea\nlikes tea", "hates nuts", "Rain"]
    assert len(reasons) == 1


def test_a_path_names_a_field_within_another_and_takes_it_from_there(given):
    fields = Fields.of("meta.author", "meta.year", scope={"user_id": "title"})
    rows, reasons, _ = taken(given, fields)
    assert [(i, text) for i, text, _ in rows] == [
        ("2020", "ann"),
        ("2021", "bob"),
        (None, "bob"),
        ("3", "bob"),
    ]
    # An object from which all was taken is no metadata any more.
    assert all("meta" not in metadata for *_, metadata in rows) and not reasons


def test_what_is_left_of_an_object_stays_in_the_metadata(given):
    rows, _, _ = taken(given, Fields.of("meta.author", "n", metadata=None))
    assert [metadata.get("meta") for *_, metadata in rows] == [
        {"year": 2020},
        {"year": 2021},
        None if isinstance(given, list) or given.suffix == ".jsonl" else {"year": None},
        {"year": 3},
    ]


def test_metadata_are_the_fields_that_are_named_under_these_names(given):
    fields = Fields.of("meta.author", "n", metadata="meta.year, body,nowhere")
    rows, _, (note,) = taken(given, fields)
    assert [metadata for *_, metadata in rows] == [
        {"meta.year": 2020, "body": "likes tea"},
        {"meta.year": 2021, "body": "hates nuts"},
        {},
        {"meta.year": 3},
    ]
    assert "'nowhere'" in note and "title" in note
    assert taken(given, Fields.of("meta.author", "n", metadata="none"))[0][0][2] == {}


def test_an_id_is_made_of_fields_and_a_row_without_one_of_them_is_refused(given):
    rows, reasons, _ = taken(given, Fields.of("meta.author", id_template="{meta.year}/{n}"))
    assert [i for i, _, _ in rows] == ["2020/1", "2021/2", "3/4"]
    assert reasons == ["field 'meta.year' has no value, and the id is made of it"]
    # What an id is made of cannot be told from it, and so stays.
    assert rows[0][2]["n"] == 1


def test_an_unknown_field_is_told_with_those_that_there_are(given):
    with pytest.raises(MissingField) as raised:
        taken(given, Fields.of(text_template="{titel}: {body}"))
    told = str(raised.value)
    assert "'titel'" in told and "Did you mean 'title'" in told and "--text-template" in told
    assert "\n" not in told
    with pytest.raises(MissingField, match=r"meta\.author"):
        taken(given, Fields.of("meta.auther"))


def test_a_name_with_a_dot_goes_before_a_path(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"a.b": "itself", "a": {"b": "inside"}}\n{"a": {"b": "inside"}}\n')
    rows, reasons, _ = taken(path, Fields.of("a.b"))
    assert [text for _, text, _ in rows] == ["itself", "inside"]
    assert rows[0][2] == {"a": {"b": "inside"}} and not reasons


def test_values_in_templates_are_written_as_json_has_them_and_lists_are_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"v": 1}\n{"v": 1.5}\n{"v": true}\n{"v": [1]}\n{"v": {"w": 1}}\n')
    rows, reasons, _ = taken(path, Fields.of(text_template="v={v}"))
    assert [text for _, text, _ in rows] == ["v=1", "v=1.5", "v=true"]
    assert ["is a list" in reasons[0], "is an object" in reasons[1]] == [True, True]


def test_files_may_do_without_a_field_of_the_template_that_others_have(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "alone"}\n')
    (tmp_path / "b.jsonl").write_text('{"body": "both", "title": "T"}\n')
    rows, reasons, notes = taken(tmp_path, Fields.of(text_template="{title}|{body}"))
    assert [text for _, text, _ in rows] == ["|alone", "T|both"] and not reasons
    assert "title 1" in notes[0]
    with pytest.raises(MissingField, match="titel"):
        taken(tmp_path, Fields.of(text_template="{titel}|{body}"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"text_template": "no field"}, "names no field"),
        ({"text_template": "{open"}, "a brace opens"),
        ({"text_template": "{}"}, "a brace opens"),
        ({"text_template": "close}"}, "a brace closes"),
        ({"text_template": "{a}", "text_field": "b"}, "put the field into the template"),
        ({"id_template": "{a}", "id_field": "b"}, "name one of them"),
        ({"text_field": ["a", "a"]}, "twice"),
        ({"text_field": [""]}, "must name a field"),
        ({"metadata": "a,a"}, "twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, told):
    with pytest.raises(UsageError, match=told):
        Fields.of(**given)


def test_rows_without_names_are_refused_with_what_gives_them_some():
    class Series:
        def to_dict(self):
            return {}

    batches = list(read_records([{"text": "a"}, ("1", "a"), (0, Series())]))
    tuples, pandas = (each.reason for each in batches[0].rejects)
    assert "dict(zip(names, row))" in tuples
    assert "iterrows" in pandas and "give the frame itself" in pandas


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_folders_called_key_and_value_are_columns(tmp_path, suffix):
    for year, place in [("2020", "a%20b"), ("2021", "__HIVE_DEFAULT_PARTITION__")]:
        folder = tmp_path / "x=1" / "rows" / f"year={year}" / f"place={place}"
        folder.mkdir(parents=True)
        if suffix == "jsonl":
            (folder / "f.jsonl").write_text('{"text": "t"}\n')
        elif suffix == "csv":
            (folder / "f.csv").write_text("text\nt\n")
        else:
            pq.write_table(pa.table({"text": ["t"]}), folder / "f.parquet")
    fields = Fields.of(scope={"user_id": "year"})
    batches = list(read([tmp_path], fields))
    rows = [row for batch in batches for row in batch.rows.to_pylist()]
    assert [row["user_id"] for row in rows] == ["2020", "2021"]
    # Only those right above the file.
    assert [json.loads(row["metadata"] or "{}") for row in rows] == [{"place": "a b"}, {}]


@pytest.mark.parametrize("shape", ["lines", "array", "records", "parquet"])
def test_nan_and_infinity_in_metadata_are_null_and_said_and_cost_no_row(tmp_path, shape):
    nan, inf = float("nan"), float("inf")
    rows = [
        {"id": "1", "text": "a", "x": nan, "y": [1.0, inf], "z": 1},
        {"id": "2", "text": "b", "x": 2.5, "y": [3.0], "z": 2},
        {"id": "3", "text": "c", "x": -inf, "y": [], "z": 3},
    ]
    given = tmp_path / ("in.parquet" if shape == "parquet" else "in.json")
    if shape == "lines":
        given.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif shape == "array":
        given.write_text(json.dumps(rows, indent=1))
    elif shape == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), given)
    report = ingest(
        rows if shape == "records" else given, db=tmp_path / "db", table="t", model="echo"
    )
    assert (report.written, report.rejected) == (3, 0)
    assert any("in 2 rows" in note and "x 2, y 1" in note for note in report.notes)
    there = Table.open(tmp_path / "db", "t").rows(columns=["id", "metadata"]).to_pylist()
    kept = {row["id"]: json.loads(row["metadata"]) for row in there}
    assert [kept[i].get("x") for i in "123"] == [None, 2.5, None]
    assert kept["1"]["y"] == [1.0, None] and kept["1"]["z"] == 1
