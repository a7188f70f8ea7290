"""Lines of JSON: what is taken, what is refused and why, where it stood."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from memworker.errors import MissingField, UsageError
from memworker.ingestion.readers import Fields, read, read_options, read_records
from memworker.ingestion.records import scopes_of

GOOD = b'{"id": "a", "text": "fine"}'


def rows_and_rejects(path, fields=None, **options):
    batches = list(read([path], fields, **options))
    rows = [t for c in batches for t in c.rows["text"].to_pylist()]
    return rows, [reject for c in batches for reject in c.rejects]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed JSON"),
        (b'{"text": "two"} and {"text": "more"}', "malformed JSON"),
        (b'{"text": "x", "n": NaN, "m": }', "malformed JSON"),
        (b'{"text": NaN}', "is nan, as a missing value is"),
        (b"{'text': 'quotes'}", "malformed JSON"),
        (b'{"text": "raw \x00 byte"}', "malformed JSON"),
        (b'{"text": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'["text"]', "not a JSON object but an array"),
        (b"17", "not a JSON object but a number"),
        (b"null", "not a JSON object but null"),
        (b'{"id": "b"}', "no field 'text'"),
        (b'{"text": null}', "field 'text' is null; a text must be a string"),
        (b'{"text": 3.5}', "a number; a text must be a string; --text-template '{text}'"),
        (b'{"text": true}', "field 'text' is true or false; a text must be a string"),
        (b'{"text": ["a"]}', "field 'text' is an array; a text must be a string"),
        (b'{"text": ""}', "empty text"),
        (b'{"text": " \\t\\n\\u3000"}', "empty text"),
        (b'{"text": "' + b"x" * 101 + b'"}', "text of 101 bytes, over the cap of 100"),
        ('{"text": "' + "ä" * 51 + '"}', "text of 102 bytes, over the cap of 100"),
        (b'{"text": "bad \xff byte"}', "invalid UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
        (b'{"text": "half \\ud83d pair"}', "a lone surrogate"),
        (b'{"text": "half \\udc00"}', "a lone surrogate"),
        (b'{"text": "fine", "note": "\\ud800"}', "a lone surrogate"),
        (b'{"id": 1.5, "text": "x"}', "field 'id' is a number; it must be a string or a whole"),
        (b'{"id": true, "text": "x"}', "field 'id' is true or false"),
        (b'{"id": ["a"], "text": "x"}', "field 'id' is an array"),
        (b'{"id": "", "text": "x"}', "field 'id': the id is an empty string"),
    ],
)
def test_a_bad_line_is_refused_alone_with_its_reason(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD + b"\n")
    rows, rejects = rows_and_rejects(path, max_text_bytes=100)
    assert rows == ["fine", "fine"]
    (reject,) = rejects
    assert reason in reject.reason
    assert (reject.path, reject.line, reject.ordinal) == (str(path), 3, 1)
    assert line.decode(errors="replace").startswith(reject.excerpt)
    assert 0 < len(reject.excerpt) <= 200


def test_texts_are_stored_verbatim(tmp_path):
    texts = [
        "nul \0 inside",
        "\u202eright to left\u202c",
        "👩‍👩‍👧 emoji",
        "记忆",
        "\ufeffx",
        "a\r\nb",
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert rows_and_rejects(path) == (texts, [])


def test_columns_of_a_batch(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'{"id": "a", "text": "one", "author": "ann", "n": 1, "deep": {"x": [1, null]}}\n'
        b'{"id": 12345678901234567890123, "text": "two", "author": 7}\n'
        b'{"text": "three", "author": null, "n": null}\n'
        b'{"id": null, "text": "four"}\n'
    )
    (batch,) = read([path], Fields(scopes=(("user_id", "author"),)))
    rows = batch.rows
    assert rows["text"].type == pa.string()
    assert rows["id"].to_pylist() == ["a", "12345678901234567890123", None, None]
    assert {k: v.to_pylist() for k, v in scopes_of(rows).items()} == {
        "user_id": ["ann", "7", "", ""]
    }
    metadata = [m and json.loads(m) for m in rows["metadata"].to_pylist()]
    assert metadata == [{"n": 1, "deep": {"x": [1, None]}}, None, {"n": None}, None]
    assert rows["line"].to_pylist() == [1, 2, 3, 4]
    assert rows["ordinal"].type == rows["line"].type == pa.int64()
    assert (rows.num_rows, batch.read) == (4, 4)


def test_columns_that_no_row_has_are_none(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "one", "n": 1}\n')
    (batch,) = read([path], Fields(metadata=False))
    assert batch.rows["id"].null_count == batch.rows.num_rows
    assert batch.rows["metadata"].null_count == batch.rows.num_rows


def test_byte_order_mark_crlf_blank_lines_and_no_last_newline(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}\r\n\n{"text": "c"}')
    (batch,) = read([path])
    assert batch.rows["text"].to_pylist() == ["a", "b", "c"]
    assert batch.rows["line"].to_pylist() == [1, 4, 6]
    assert batch.rows["ordinal"].to_pylist() == [0, 1, 2]


def test_chunks_ordinals_and_limit_over_several_files(tmp_path):
    for name in "ab":
        lines = [f'{{"text": "{name}{i}"}}' if i % 10 else "bad" for i in range(1, 101)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    batches = list(read([tmp_path], batch_rows=32, limit=150))
    assert [c.read for c in batches] == [32, 32, 32, 4, 32, 18]
    ordinals = [o for c in batches for o in c.rows["ordinal"].to_pylist()] + [
        r.ordinal for c in batches for r in c.rejects
    ]
    assert sorted(ordinals) == list(range(150))
    for batch in batches:
        name = batch.path[-len("a.jsonl")]
        assert batch.rows["text"].to_pylist() == [
            f"{name}{line}" for line in batch.rows["line"].to_pylist()
        ]
    rejects = [r for c in batches for r in c.rejects]
    assert [(r.path[-len("a.jsonl")], r.line) for r in rejects[-2:]] == [("b", 40), ("b", 50)]


def test_wrong_limits_are_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD)
    for limit in (0, -1):
        with pytest.raises(UsageError, match=f"not {limit}"):
            read([path], limit=limit)
    with pytest.raises(UsageError, match="batch_rows=0"):
        read([path], batch_rows=0)


def test_empty_texts_may_be_allowed(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": ""}\n{"text": "  "}\n')
    assert rows_and_rejects(path, allow_empty=True) == (["", "  "], [])


def test_a_missing_field_names_those_there_are(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'not json\n{"id": "1", "contents": "x", "date": "d"}\n')
    with pytest.raises(MissingField, match=r"no field 'content'.*contents, date, id.*'contents'\?"):
        list(read([path], Fields(text="content")))
    with pytest.raises(MissingField, match=r"'text'.*--text-field") as caught:
        list(read([path]))
    assert caught.value.available == ("contents", "date", "id")
    with pytest.raises(MissingField, match=r"no field 'who'.*--scope"):
        list(read([path], Fields(text="contents", scopes=(("user_id", "who"),))))
    with pytest.raises(MissingField, match=r"no field 'key'.*--id-field"):
        list(read([path], Fields(text="contents", id="key")))


def test_unknown_scope_columns_are_refused():
    with pytest.raises(UsageError, match="user_id, agent_id, run_id"):
        Fields(scopes=(("user", "author"),))
    with pytest.raises(UsageError, match="twice"):
        Fields(scopes=(("user_id", "a"), ("user_id", "b")))


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_a_line_over_the_cap_is_skipped(tmp_path, newline):
    path = tmp_path / "in.jsonl"
    long = b'{"text": "' + b"x" * 3000 + b'"}'
    path.write_bytes(GOOD + b"\n" + long + b"\n" + GOOD + b"\n" + long + newline)
    rows, rejects = rows_and_rejects(path, max_line_bytes=1000)
    assert rows == ["fine", "fine"]
    assert [r.line for r in rejects] == [2, 4]
    assert "line over the cap of 1,000 bytes" in rejects[0].reason
    assert rejects[0].excerpt == long[:200].decode()


@pytest.mark.parametrize("cap", [len(GOOD) - 1, len(GOOD)])
def test_the_line_cap_is_exact_wherever_blocks_are_cut(tmp_path, cap):
    path = tmp_path / "in.jsonl"
    path.write_bytes((GOOD + b"\n") * 100)
    rows, rejects = rows_and_rejects(path, max_line_bytes=cap)
    expected = (100, 0) if cap == len(GOOD) else (0, 100)
    assert (len(rows), len(rejects)) == expected


def test_a_json_file_may_be_one_array(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"text": "a"}, 3, {"text": "b\n"}], indent=2))
    rows, rejects = rows_and_rejects(path)
    assert rows == ["a", "b\n"]
    assert [(r.line, r.reason) for r in rejects] == [(2, "not a JSON object but a number")]
    path.write_text('\n{"text": "c"}\n{"text": "d"}\n')
    assert rows_and_rejects(path)[0] == ["c", "d"]


def test_python_records_are_read_alike():
    records = ["plain", {"id": 1, "text": "mapped", "tag": ("a",)}, 5, {"text": "\ud800"}, {"x": 1}]
    records += [{"text": "f", "tag": object()}, {"text": b"bytes"}, {1: "x", "text": "y"}]
    (batch,) = read_records(records)
    assert batch.rows["text"].to_pylist() == ["plain", "mapped"]
    assert batch.rows["id"].to_pylist() == [None, "1"]
    assert batch.rows["metadata"].to_pylist() == [None, '{"tag":["a"]}']
    assert records[1] == {"id": 1, "text": "mapped", "tag": ("a",)}
    reasons = {r.line: r.reason for r in batch.rejects}
    assert reasons[3] == "not a string or mapping but a number"
    assert "lone surrogate" in reasons[4]
    assert reasons[5] == "no field 'text'"
    assert "cannot be written as JSON" in reasons[6]
    assert "is bytes" in reasons[7]
    assert reasons[8] == "a key is not a string"


def test_records_are_taken_as_they_are_asked_for():
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield "text"

    batches = read_records(endless(), read_options(None, 10), limit=25)
    assert [batch.read for batch in batches] == [10, 10, 5]
    assert len(asked) == 30


def test_edge_texts_are_taken_but_for_empty_and_oversized_ones(data_dir):
    path = data_dir / "edge" / "edge_texts.jsonl"
    given = [json.loads(line)["text"] for line in path.read_bytes().splitlines()]
    rows, rejects = rows_and_rejects(path)
    assert len(rows) + len(rejects) == len(given)
    assert rows == [t for t in given if t.strip() and len(t.encode()) <= 1 << 20]
    assert all("empty text" in r.reason or "over the cap" in r.reason for r in rejects)


def test_real_texts_come_in_order_with_their_ids(data_dir):
    batches = list(read([data_dir / "mix_open.jsonl.gz"], limit=20_000))
    assert [c.read for c in batches] == [8192, 8192, 3616]
    assert not [c for c in batches if c.rejects]
    ids = [i for c in batches for i in c.rows["id"].to_pylist()]
    assert ids[0] == "wordnet/noun/04184316"
    assert len(set(ids)) == 20_000
