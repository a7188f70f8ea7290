"""Bad and odd rows: each is rejected by name or stored as it is, and none stops the job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memworker.store import Table
from tests.faults.harness import arguments, memworker, resume

ODD = {
    "nul": "before\x00after",
    "bidi": "\u202eright to left\u202c \u2067x\u2069",
    "emoji": "family \U0001f468\u200d\U0001f469\u200d\U0001f467, flag \U0001f1fa\U0001f1f3",
    "cjk": "記憶是時間的容器",
    "combining": "e\u0301 is not \u00e9",
    "controls": "\x01\x1f\x7f\u0085\u2028\ufeff.",
    "long": "長" * 300_000,
    "quotes": "'; DROP TABLE t; -- \" \\",
}


def landed(db):
    rows = Table.open(db, "t").rows(columns=["id", "text"])
    return dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True))


def refused(report):
    lines = Path(report.rejects).read_text().splitlines()
    return {row["line"]: row for row in map(json.loads, lines)}


def test_33_34_malformed_lines_are_rejected_by_path_line_and_reason(tmp_path, db):
    path = tmp_path / "in.jsonl"
    bad = {
        2: (b"{broken", "malformed JSON"),
        3: (b'{"id": "3", "text": "caf\xe9"}', "invalid UTF-8"),
        4: (b'{"id": "4", "text": "\\ud83d"}', "lone surrogate"),
        5: (b'["no", "object"]', "not a JSON object"),
        6: (b'{"id": "6", "text": 7}', "must be a string"),
        7: (b'{"id": "7"}', "no field 'text'"),
        8: (b'{"id": "8", "text": "  \\t "}', "empty text"),
        9: (b'{"id": {}, "text": "x"}', "must be a string or a whole number"),
    }
    lines = [b'{"id": "1", "text": "one"}', *(line for line, _ in bad.values())]
    path.write_bytes(b"\n".join([*lines, b'{"id": "10", "text": "ten"}']))
    report = resume(path, db)
    assert landed(db) == {"1": "one", "10": "ten"}
    rows = refused(report)
    assert rows.keys() == bad.keys() and report.rejected == len(bad)
    for line, (_, reason) in bad.items():
        assert reason in rows[line]["reason"] and rows[line]["path"] == str(path)
    with memworker(*arguments(path, db)) as run:
        assert run.wait().code == 3


def test_35_odd_texts_are_stored_verbatim(tmp_path, db):
    path = tmp_path / "in.jsonl"
    rows = [*ODD.items(), ("empty", ""), ("white", " \u3000\n")]
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows))
    report = resume(path, db)
    assert (report.written, report.rejected) == (len(ODD), 2)
    assert landed(db) == ODD
    assert {row["id"] for row in refused(report).values()} == {"empty", "white"}


def test_36_a_single_line_of_100_mb(tmp_path, db):
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": "a", "text": "first"}\n{"id": "huge", "text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"id": "b", "text": "last"}\n')
    report = resume(path, db)
    assert landed(db) == {"a": "first", "b": "last"}
    assert "line over the cap of 5,242,880 bytes" in refused(report)[2]["reason"]


def rows_of(tmp_path, name, *rows):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in rows))
    return path


@pytest.mark.parametrize(
    ("policy", "text", "rejected"), [("reject", "one", 2), ("skip", "one", 0), ("update", "3", 0)]
)
def test_37_equal_ids_in_a_batch_across_batches_and_across_files(
    tmp_path, db, policy, text, rejected
):
    filler = [(f"f{i}", f"filler {i}") for i in range(9000)]
    first = rows_of(tmp_path, "1.jsonl", ("a", "one"), ("a", "one"), ("a", "two"), *filler)
    second = rows_of(tmp_path, "2.jsonl", ("a", "one"), ("a", "3"), ("b", "b"), filler[0])
    report = resume([first, second], db, on_conflict=policy)
    there = landed(db)
    assert there["a"] == text and there["b"] == "b" and len(there) == 9002
    assert report.written == 9002
    assert report.duplicates + report.conflicts == 5 and report.rejected == 0
    assert len(refused(report) if report.rejects else ()) == rejected


def test_37_equal_texts_of_other_ids_are_embedded_once(tmp_path, db):
    rows = [(str(i), f"text {i % 10}") for i in range(9000)]
    report = resume(rows_of(tmp_path, "in.jsonl", *rows), db)
    assert (report.written, report.embedded, report.reused) == (9000, 10, 8990)
    assert landed(db) == dict(rows)
