"""Nothing of a row vanishes, and nothing of it is altered, without a word."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from memworker.cli.app import app
from memworker.errors import InputError, UsageError
from memworker.ingestion.readers import Fields, read, read_records
from memworker.json_lines import object_of

UUIDS = [UUID(int=1), UUID(int=2)]
TIMES = pa.array([1577836800123456789, None], pa.timestamp("ns"))


def as_file(tmp_path, columns, suffix):
    path = tmp_path / f"in.{suffix}"
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return path


def read_all(source, fields=None):
    (batch,) = read([source], fields) if not isinstance(source, list) else read_records(source)
    metadata = batch.rows["metadata"].to_pylist()
    return (
        batch.rows["id"].to_pylist(),
        [None if each is None else json.loads(each) for each in metadata],
        [reject.reason for reject in batch.rejects],
    )


COLUMNS = {
    "nanoseconds": (TIMES, ["2020-01-01T00:00:00.123456789", None]),
    "zone": (TIMES.cast(pa.timestamp("ns", "UTC")), ["2020-01-01T00:00:00.123456789Z", None]),
    "far years": (
        pa.array([10**14, 0], pa.timestamp("ms")),
        ["+5138-11-16T09:46:40"[1:], "1970-01-01T00:00:00"],
    ),
    "farther years": (
        pa.array([10**15, 0], pa.timestamp("ms")),
        ["+33658-09-27T01:46:40", "1970-01-01T00:00:00"],
    ),
    "decimals": (pa.array([Decimal("1.10"), None]), ["1.10", None]),
    "durations": (pa.array([1, None], pa.duration("s")), ["PT1S", None]),
    "bytes": (pa.array([b"\xff", None]), ["/w==", None]),
    "nested": (
        pa.array(
            [{"t": 1, "l": [1, 2]}, None],
            pa.struct({"t": pa.time32("s"), "l": pa.list_(pa.int8())}),
        ),
        [{"t": "00:00:01", "l": [1, 2]}, None],
    ),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    "large integers": (pa.array([2**64 - 1, 0], pa.uint64()), [2**64 - 1, 0]),
}


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_every_type_are_kept(tmp_path, name, suffix):
    column, kept = COLUMNS[name]
    path = as_file(tmp_path, {"text": ["a", "b"], "v": column}, suffix)
    _, metadata, reasons = read_all(path)
    assert reasons == []
    assert metadata == [None if value is None else {"v": value} for value in kept]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_number_for_is_null_in_files_and_records(tmp_path, bad):
    for source in (
        as_file(tmp_path, {"text": ["a", "b"], "v": [1.5, bad]}, "parquet"),
        [{"text": "a", "v": 1.5}, {"text": "b", "v": bad}],
    ):
        _, metadata, reasons = read_all(source)
        assert metadata == [{"v": 1.5}, {"v": None}] and not reasons


@pytest.mark.parametrize("bad", ["18446744073709551616", "-9223372036854775809", "1" + "0" * 40])
def test_integers_beyond_64_bits_cost_their_row_in_json(tmp_path, bad):
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"text": "a", "v": [{{"w": {bad}}}]}}\n{{"text": "b", "v": 1}}\n')
    _, metadata, (reason,) = read_all(path)
    assert metadata == [{"v": 1}]
    assert f"'v[0].w' is the integer {bad}, which needs more than 64 bits" in reason


def of_views(*texts):
    """Make a dictionary whose values are views, as polars writes its categories."""
    return pa.DictionaryArray.from_arrays([0, 1], pa.array(texts, pa.string_view()))


def test_categories_of_polars_are_taken_wherever_they_stand(tmp_path):
    cell, inner = of_views("x", "y"), of_views("p", "q")
    columns = {
        "text": of_views("a", "b"),
        "v": cell,
        "l": pa.ListArray.from_arrays([0, 1, 2], inner),
        "s": pa.StructArray.from_arrays([inner], ["c"]),
    }
    _, metadata, reasons = read_all(as_file(tmp_path, columns, "arrow"))
    assert reasons == []
    assert metadata == [
        {"l": ["p"], "s": {"c": "p"}, "v": "x"},
        {"l": ["q"], "s": {"c": "q"}, "v": "y"},
    ]


IDS = {
    "floats": (pa.array([1.0, None]), ["1", None]),
    "uuids": (
        pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([u.bytes for u in UUIDS], pa.binary(16))
        ),
        [str(each) for each in UUIDS],
    ),
    "sixteen bytes": (pa.array([u.bytes for u in UUIDS], pa.binary(16)), [str(u) for u in UUIDS]),
    "four bytes": (pa.array([b"\x00\xff\x01\x02", None], pa.binary(4)), ["00ff0102", None]),
    "decimals": (pa.array([Decimal(7), None]), ["7", None]),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    "string view": (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
    "dictionary of views": (of_views("a", "b"), ["a", "b"]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_other_types(tmp_path, name):
    column, ids = IDS[name]
    found, _, reasons = read_all(as_file(tmp_path, {"text": ["a", "b"], "id": column}, "arrow"))
    assert (found, reasons) == (ids, [])


def test_ids_that_are_none_cost_their_row(tmp_path):
    columns = {"text": list("abc"), "id": [1.5, float("nan"), 2.0]}
    ids, _, reasons = read_all(as_file(tmp_path, columns, "parquet"))
    assert ids == ["2"]
    told = ["is a number; it must be", "is nan; it must be"]
    assert all(part in reason for part, reason in zip(told, reasons, strict=True))


def test_records_with_values_of_other_libraries():
    at = datetime(2020, 1, 1, tzinfo=UTC)
    rows = [
        {"id": UUIDS[0], "text": "a", "at": at, "n": np.int64(3), "ok": np.bool_(True)},
        {
            "id": np.int64(7),
            "text": np.str_("b"),
            "at": np.datetime64("2020-01-01"),
            "d": Decimal("1.0"),
        },
    ]
    ids, metadata, reasons = read_all(rows)
    assert (ids, reasons) == ([str(UUIDS[0]), "7"], [])
    assert metadata[0] == {"at": "2020-01-01T00:00:00Z", "n": 3, "ok": True}
    assert metadata[1] == {"at": "2020-01-01", "d": "1.0"}


def test_two_columns_of_one_name_are_both_kept(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text,a,a,a_2,a\nx,1,2,3,4\n")
    assert read_all(path)[1] == [{"a": "1", "a_2": "3", "a_3": "2", "a_4": "4"}]
    table = pa.Table.from_arrays(
        [pa.array(["x"]), pa.array([1]), pa.array([2])], ["text", "a", "a"]
    )
    for suffix in ("arrow", "parquet"):
        assert read_all(as_file(tmp_path, table, suffix))[1] == [{"a": 1, "a_2": 2}]


@pytest.mark.parametrize("name", ["text", "id", "user"])
def test_two_columns_of_which_one_is_wanted_are_refused(tmp_path, name):
    path = tmp_path / "in.csv"
    path.write_text(f"id,user,text,{name}\n1,u,x,y\n")
    with pytest.raises(InputError, match=f"two columns '{name}'"):
        list(read([path], Fields(scopes=(("user_id", "user"),))))


def test_columns_that_are_called_like_ours_are_metadata(tmp_path):
    names = [
        "vector",
        "scopes",
        "line",
        "ordinal",
        "path",
        "key",
        "metadata",
        "user_id",
        "created_at",
    ]
    path = tmp_path / "in.csv"
    path.write_text(",".join(["text", *names]) + "\nx," + ",".join(names) + "\n")
    assert read_all(path)[1] == [{name: name for name in names}]


def test_more_fields_than_headers_cost_their_row(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text,a\nx,1,2\ny,1\nz\n")
    _, metadata, reasons = read_all(path)
    assert metadata == [{"a": "1"}]
    assert [reason[:9] for reason in reasons] == ["3 columns", "1 columns"]


def test_a_scope_that_is_given_twice_is_refused():
    args = [
        "ingest",
        "x.csv",
        "--db",
        "d",
        "--table",
        "t",
        "--scope",
        "user_id=a",
        "--scope",
        "user_id=b",
    ]
    done = CliRunner().invoke(app, args)
    assert "names 'user_id' twice" in str(done.exception) + done.output


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "n": 1, "n": 2}',
        '{"text":"a","n":1,"n":2}',
        '{"text": "a", "m": [{"n" : 1, "n" : 2}]}',
        '{"n": 1, "text": "a: \\"b\\": c", "n": 1}',
    ],
)
def test_a_field_that_is_there_twice_in_json_costs_its_row(tmp_path, line):
    path = tmp_path / "in.jsonl"
    path.write_text(line + '\n{"text": "b: \\"c\\":", "m": {"x": [{"y": 1}, {"y": 2}]}}\n')
    _, metadata, (reason,) = read_all(path)
    assert metadata == [{"m": {"x": [{"y": 1}, {"y": 2}]}}]
    assert "the field 'n' twice" in reason
    with pytest.raises(UsageError, match="the field 'n' twice"):
        object_of(line)
