"""What people call JSON: arrays, objects over lines, one behind the other; files and pipes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading

import pytest

from memworker.errors import MissingField
from memworker.ingestion.readers import read
from memworker.ingestion.readers.shapes import values_of
from tests import PATIENCE_S

ROWS = [
    {"id": str(i), "text": f'text {i} {{"[}}\\ ä "quoted"', "n": {"deep": [i]}} for i in range(700)
]
TEXTS = [row["text"] for row in ROWS]
MARK = "\ufeff"
SHAPES = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "an array": json.dumps(ROWS),
    "an array over lines": json.dumps(ROWS, indent=2),
    "an array with a comma too many": json.dumps(ROWS)[:-1] + ",]",
    "an array a line": "\n".join(json.dumps([row]) for row in ROWS),
    "arrays behind each other": json.dumps(ROWS[:9]) + json.dumps(ROWS[9:]),
    "pretty-printed": "\n".join(json.dumps(row, indent=4) for row in ROWS),
    "on one line": "".join(map(json.dumps, ROWS)),
    "on one line with commas": ", ".join(map(json.dumps, ROWS)),
    "lines with commas": ",\n".join(map(json.dumps, ROWS)),
    "record separators": "".join(f"\x1e{json.dumps(row)}\n" for row in ROWS),
    "joined without a line's end": "\n".join(map(json.dumps, ROWS[:300]))
    + "\n".join(map(json.dumps, ROWS[300:])),
    "marks between files": MARK.join(json.dumps(row) + "\n" for row in ROWS),
    "a mark before pretty ones": MARK + "\n".join(json.dumps(row, indent=1) for row in ROWS),
}


def texts_and_rejects(*inputs, **options):
    batches = list(read(inputs, **options))
    texts = [t for c in batches for t in c.rows["text"].to_pylist()]
    return texts, [reject for c in batches for reject in c.rejects]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read(tmp_path, shape, suffix):
    path, content = tmp_path / f"in.{suffix}", SHAPES[shape].encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert texts_and_rejects(path) == (TEXTS, [])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_from_a_pipe(tmp_path, shape):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(SHAPES[shape],))
    writer.start()
    assert texts_and_rejects(pipe, format="json") == (TEXTS, [])
    writer.join(PATIENCE_S)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_shapes_are_cut_alike_wherever_blocks_end(shape, size):
    content = SHAPES[shape].encode()[:4000]
    blocks = (content[at : at + size] for at in range(0, len(content), size))
    pieces = [v for values in values_of(blocks, 1 << 20) for v in values]
    whole = [v for values in values_of(iter([content]), 1 << 20) for v in values]
    assert pieces == whole and len(whole) > 5


def test_rows_before_the_damage_are_read_and_the_rest_is_one_reject(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps(ROWS)[:-40])
    texts, (reject,) = texts_and_rejects(path)
    assert texts == TEXTS[:-1]
    assert reject.line == len(ROWS) and "ends before this value does" in reject.reason


def test_a_bad_object_among_pretty_ones_costs_itself(tmp_path):
    path = tmp_path / "in.jsonl"
    good = [json.dumps(row, indent=2) for row in ROWS[:3]]
    path.write_text(
        "\n".join([good[0], '{\n  "text": "left open\n', good[1], '{"text": nope}', good[2]])
    )
    texts, rejects = texts_and_rejects(path)
    assert texts == TEXTS[:3]
    assert [r.line for r in rejects] == [10, 22]
    assert all("malformed JSON" in r.reason for r in rejects)


def test_a_value_over_the_cap_is_given_up(tmp_path):
    path = tmp_path / "in.json"
    big = {"text": "x" * 5_000_000}
    path.write_text("\n".join(json.dumps(r, indent=1) for r in (ROWS[0], big, ROWS[1])))
    texts, (reject,) = texts_and_rejects(path, max_line_bytes=1_000_000)
    assert texts == TEXTS[:2] and "line over the cap of 1,000,000 bytes" in reject.reason


def test_rows_within_one_object_are_pointed_at(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps({"data": ROWS, "total": 700}, indent=1))
    with pytest.raises(
        MissingField, match=r"'data' holds a list of 700 objects.*jq -c '\.data\[\]'"
    ):
        texts_and_rejects(path)


ROW_BY_ROW = """
from memworker.ingestion.readers import read
for batch in read(["-"]):
    print(batch.rows["text"].to_pylist(), flush=True)
"""


@pytest.mark.parametrize("form", ["{}\n", "[{},\n"])
def test_a_slow_producer_of_any_shape_does_not_wait(form):
    child = subprocess.Popen(
        [sys.executable, "-c", ROW_BY_ROW], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child, child.stdin:
        child.stdin.write(form.replace("{}", '{"text":"x"}').encode())
        child.stdin.flush()
        assert child.stdout.readline() == b"['x']\n"
        child.stdin.write(b'{"text": "y"}')
        child.stdin.close()
        assert child.stdout.read() == b"['y']\n"
