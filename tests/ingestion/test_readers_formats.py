"""Every format, plain and compressed, whole and damaged."""

from __future__ import annotations

import datetime
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from memworker.errors import InputError, MissingField
from memworker.ingestion.readers import Dialect, Fields, read

ROWS = [
    {"id": f"r{i}", "text": f'text {i}: "quoted", ä, 记忆', "tag": str(i % 7)} for i in range(1000)
]
TEXTS = [row["text"] for row in ROWS]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def delimited(separator: str) -> bytes:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = [separator.join(("id", "text", "tag"))]
    lines += [separator.join(map(quoted, row.values())) for row in ROWS]
    return "\r\n".join(lines).encode()


def arrow_stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return out.getvalue()


def as_feather(table: pa.Table) -> bytes:
    # Feather V2 is the Arrow file format, compressed with LZ4 by its usual writers.
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(out, table.schema, options=options) as writer:
        writer.write_table(table)
    return out.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=400)
    return out.getvalue()


TABLE = pa.Table.from_pylist(ROWS)
CONTENT = {
    "jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "ndjson": "\n".join(map(json.dumps, ROWS)).encode(),
    "json": json.dumps(ROWS).encode(),
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "parquet": as_parquet(TABLE),
    "arrow": arrow_stream(TABLE),
    "ipc": arrow_stream(TABLE),
    "feather": as_feather(TABLE),
    "txt": "\n".join(TEXTS).encode(),
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", CONTENT)
def test_every_format_gives_the_same_rows(tmp_path, suffix, packing):
    path = tmp_path / f"in.{suffix}{packing}"
    path.write_bytes(PACK[packing](CONTENT[suffix]))
    batches = list(read([path], batch_rows=256))
    assert sum((c.rows["text"].to_pylist() for c in batches), []) == TEXTS
    assert max(c.read for c in batches) <= 256
    assert [o for c in batches for o in c.rows["ordinal"].to_pylist()] == list(range(1000))
    first = 2 if suffix in ("csv", "tsv") else 1
    assert [n for c in batches for n in c.rows["line"].to_pylist()] == list(
        range(first, first + 1000)
    )
    if suffix == "txt":
        assert batches[0].rows["id"].null_count == batches[0].rows.num_rows
        assert batches[0].rows["metadata"].null_count == batches[0].rows.num_rows
    else:
        assert sum((c.rows["id"].to_pylist() for c in batches), []) == [r["id"] for r in ROWS]
        assert batches[0].rows["metadata"][3].as_py() == '{"tag":"3"}'


@pytest.mark.parametrize("suffix", [s for s in CONTENT if s != "json"])
def test_format_overrides_the_suffix_and_limit_holds(tmp_path, suffix):
    path = tmp_path / "in.data"
    path.write_bytes(CONTENT[suffix])
    batches = list(read([path], format=suffix, limit=300, batch_rows=256))
    assert [c.read for c in batches][-1] <= 256
    assert sum((c.rows["text"].to_pylist() for c in batches), []) == TEXTS[:300]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_members_one_after_the_other_are_one_file(tmp_path, packing):
    path = tmp_path / f"in.jsonl{packing}"
    half = len(CONTENT["jsonl"]) // 2
    parts = (CONTENT["jsonl"][:half], b"", CONTENT["jsonl"][half:])
    path.write_bytes(b"".join(map(PACK[packing], parts)))
    assert sum((c.rows["text"].to_pylist() for c in read([path])), []) == TEXTS


def test_zeros_after_a_gzip_member_are_padding(tmp_path):
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(CONTENT["jsonl"]) + bytes(512))
    assert sum(c.rows.num_rows for c in read([path])) == 1000


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_rows_before_the_damage_are_delivered_and_the_next_file_is_read(
    tmp_path, suffix, packing, damage
):
    whole = PACK[packing](CONTENT[suffix] + b"\n")
    damaged = whole + (whole[:-20] if damage == "cut" else b"garbage" * 9)
    path, after = tmp_path / f"a.{suffix}{packing}", tmp_path / f"b.{suffix}"
    path.write_bytes(damaged)
    after.write_bytes(CONTENT[suffix])
    batches = list(read([path, after]))
    rejects = [r for c in batches for r in c.rejects if "gzip" in r.reason or "zstd" in r.reason]
    (reject,) = rejects
    assert ("ends too early" if damage == "cut" else "damaged") in reject.reason
    assert reject.path == str(path)
    before = [t for c in batches for t in c.rows["text"].to_pylist() if c.path == str(path)]
    assert before[:1000] == TEXTS
    assert sum(c.rows.num_rows for c in batches if c.path == str(after)) == 1000
    read_rows = sum(c.read for c in batches)
    ordinals = [
        o
        for c in batches
        for o in (*c.rows["ordinal"].to_pylist(), *(r.ordinal for r in c.rejects))
    ]
    assert sorted(ordinals) == list(range(read_rows))


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
@pytest.mark.parametrize("packing", PACK)
def test_a_damaged_columnar_file_is_one_reject(tmp_path, suffix, packing):
    path, after = tmp_path / f"a.{suffix}{packing}", tmp_path / "b.jsonl"
    path.write_bytes(PACK[packing](CONTENT[suffix][:2000]))
    after.write_bytes(CONTENT["jsonl"])
    batches = list(read([path, after]))
    (reject,) = [r for c in batches for r in c.rejects]
    assert reject.path == str(path)
    assert "cannot be read from here on" in reject.reason
    assert sum(c.rows.num_rows for c in batches) == 1000


@pytest.mark.parametrize("suffix", CONTENT)
@pytest.mark.parametrize("packing", PACK)
def test_an_empty_file_gives_no_rows(tmp_path, suffix, packing):
    path = tmp_path / f"a.{suffix}{packing}"
    path.write_bytes(b"")
    batches = list(read([path]))
    assert sum(c.rows.num_rows for c in batches) == 0


def test_what_is_wrong_with_a_file_of_cells_or_columns_names_what_helps(tmp_path):
    path, table = tmp_path / "in.csv", tmp_path / "in.parquet"
    path.write_bytes(b"id,text\na,fine\nb,two\rc,three\n")
    (batch,) = read([path])
    assert [r.reason for r in batch.rejects] == [
        "malformed row: a carriage return stands within it, outside of quotes; where lines end by"
        " it, write newlines: tr '\\r' '\\n'"
    ]
    path.write_text("1,fine\n2,two\n")
    with pytest.raises(MissingField, match="called by their numbers") as told:
        list(read([path], dialect=Dialect(header=False)))
    assert "--no-header" not in str(told.value)
    parquet.write_table(pa.table({"text": [5]}), table)
    with pytest.raises(InputError, match=r"--text-template '\{text\}' \(text_template=\)"):
        list(read([table]))


def test_csv_rows_that_span_lines_keep_their_first_line(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('text,id\n"one\ntwo\nthree",a\nfour,b\n\n"five, ""5""",\n')
    (batch,) = read([path])
    assert batch.rows["text"].to_pylist() == ["one\ntwo\nthree", "four", 'five, "5"']
    assert batch.rows["id"].to_pylist() == ["a", "b", None]
    assert batch.rows["line"].to_pylist() == [2, 5, 7]


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 100])
def test_csv_rows_may_span_blocks(tmp_path, batch_rows):
    path = tmp_path / "in.csv"
    texts = [f"line {i}\n\n{'more' * i}" for i in range(20)]
    path.write_text("text\n" + "".join(f'"{t}"\n' for t in texts))
    batches = list(read([path], batch_rows=batch_rows))
    assert sum((c.rows["text"].to_pylist() for c in batches), []) == texts
    assert [n for c in batches for n in c.rows["line"].to_pylist()] == list(range(2, 62, 3))


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_a_bad_csv_row_costs_one_line(tmp_path, batch_rows):
    path = tmp_path / "in.csv"
    lines = [b"id,text", b"a,fine", b"b,too,many", b"c", b'd,"open', b"e,good"]
    lines += [b"f,bad \xff byte", b'g,"stray"quote', b"h,", b"i,\x00 nul", b'j,"never closed']
    path.write_bytes(b"\n".join(lines))
    batches = list(read([path], batch_rows=batch_rows))
    assert sum((c.rows["text"].to_pylist() for c in batches), []) == ["fine", "good", "\0 nul"]
    rejects = {r.line: r.reason for c in batches for r in c.rejects}
    assert sorted(rejects) == [3, 4, 5, 7, 8, 9, 11]
    assert rejects[3] == "3 columns where the header has 2"
    assert rejects[4] == "1 columns where the header has 2"
    assert "malformed row" in rejects[5]
    assert rejects[7] == "field 'text' is not valid UTF-8"
    assert "malformed row" in rejects[8]
    assert "empty text" in rejects[9]
    assert "malformed row" in rejects[11] and "--quotechar none" in rejects[11]


def test_a_csv_quote_left_open_does_not_swallow_the_file(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('text\n"open\n' + "row of some length\n" * 5000)
    batches = list(read([path], max_line_bytes=10_000))
    assert sum(c.rows.num_rows for c in batches) == 5000
    assert [r.line for c in batches for r in c.rejects] == [2]


def test_a_csv_cell_may_be_large_and_line_caps_hold(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "x" * 200_000 + "\nnext\n" + "y" * 900_000 + "\nlast\n")
    batches = list(read([path], max_line_bytes=500_000))
    texts = sum((c.rows["text"].to_pylist() for c in batches), [])
    assert texts == ["x" * 200_000, "next", "last"]
    assert [(r.line, r.reason[:17]) for c in batches for r in c.rejects] == [
        (4, "line over the cap")
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather", "arrow"])
def test_a_missing_column_names_those_there_are(tmp_path, suffix):
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(CONTENT[suffix])
    with pytest.raises(MissingField, match=r"no field 'txt'; its fields are: id, tag, text. .*\?"):
        list(read([path], Fields(text="txt")))


def test_blank_lines_of_a_text_file_are_no_rows(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \ntwo \xff\nthree")
    (batch,) = read([path])
    assert batch.rows["text"].to_pylist() == ["one", "three"]
    assert batch.rows["line"].to_pylist() == [1, 5]
    assert [(r.line, r.ordinal) for r in batch.rejects] == [(4, 1)]
    assert "not valid UTF-8" in batch.rejects[0].reason


def test_a_text_file_has_no_scopes(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("one")
    with pytest.raises(MissingField, match="no field 'author'; its fields are: body"):
        list(read([path], Fields(text="body", scopes=(("user_id", "author"),))))


def columnar(tmp_path, columns) -> object:
    path = tmp_path / "in.arrow"
    path.write_bytes(arrow_stream(pa.table(columns)))
    return path


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()]
)
def test_text_columns_of_any_string_type_are_taken(tmp_path, kind):
    texts = pa.array(["one", None, "", "vier ä"]).cast(kind)
    (batch,) = read([columnar(tmp_path, {"text": texts})])
    assert batch.rows["text"].type == pa.string()
    assert batch.rows["text"].to_pylist() == ["one", "vier ä"]
    assert batch.rows["line"].to_pylist() == [1, 4]
    assert [r.line for r in batch.rejects] == [2, 3]
    assert batch.rejects[0].reason == "field 'text' is null"


def test_dictionary_columns_are_taken(tmp_path):
    columns = {"text": pa.array(["a", "b", "a", " "]).dictionary_encode(), "id": [1, 2, 3, 4]}
    (batch,) = read([columnar(tmp_path, columns)])
    assert batch.rows["text"].to_pylist() == ["a", "b", "a"]
    assert batch.rows["id"].to_pylist() == ["1", "2", "3"]
    assert batch.rejects[0].id == "4"


def test_invalid_utf8_in_a_column_costs_its_row(tmp_path):
    raw = pa.array([b"good", b"bad \xff", b"fine"])
    (offsets, values) = raw.buffers()[1:]
    unchecked = pa.Array.from_buffers(pa.string(), 3, [None, offsets, values])
    for column in (raw, unchecked):
        (batch,) = read([columnar(tmp_path, {"text": column, "id": ["a", "b", "c"]})])
        assert batch.rows["text"].to_pylist() == ["good", "fine"]
        (reject,) = batch.rejects
        assert (reject.line, reject.id, reject.excerpt) == (2, "b", "bad \ufffd")
        assert "not valid UTF-8" in reject.reason


def test_other_columns_become_json(tmp_path):
    columns = {
        "text": ["a", "b"],
        "who": ["ann", None],
        "when": pa.array([datetime.datetime(2025, 1, 2, 3), None]),
        "vector": [[0.5, 1.0], None],
        "blob": [b"\x00\xff", None],
    }
    path = columnar(tmp_path, columns)
    (batch,) = read([path], Fields(scopes=(("agent_id", "who"),)))
    assert batch.rows["agent_id"].to_pylist() == ["ann", ""]
    first, second = batch.rows["metadata"].to_pylist()
    assert json.loads(first) == {
        "when": "2025-01-02T03:00:00",
        "vector": [0.5, 1.0],
        "blob": "AP8=",
    }
    assert second is None


@pytest.mark.parametrize("columns", [{"text": [1, 2]}, {"text": ["a"], "id": [True]}])
def test_columns_that_cannot_hold_a_text_or_id_are_an_error(tmp_path, columns):
    with pytest.raises(InputError, match=r"column '(text|id)' is (int64|bool); it must be"):
        list(read([columnar(tmp_path, columns)]))
