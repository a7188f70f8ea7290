"""Large files in pieces: the same rows, and the same lines of bad ones, as the whole file gives."""

from __future__ import annotations

import csv
import io
import json
import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memworker.ingestion.cluster.cutting import look_through, pieces_of
from memworker.ingestion.readers import Fields, expand, read_options, read_sources


def look(stretches):
    return [look_through(each) for each in stretches]


def rows_of(sources):
    """Every row and refused row with its path and line, in order."""
    found = []
    for source in sources:
        for batch in read_sources([source], read_options(Fields(), 512)):
            rows = batch.rows.select(["line", "id", "text", "metadata"]).to_pylist()
            found += [tuple(row.values()) for row in rows]
            found += [(r.line, "refused", r.reason, r.excerpt, r.path) for r in batch.rejects]
    return sorted(found, key=lambda row: row[0])


def in_pieces(path, part_bytes, at_least=3):
    (source,) = expand([path])
    pieces, note = pieces_of(source, Fields(), part_bytes, look)
    assert not note
    assert len(pieces) >= at_least
    return pieces


def words(rng):
    return "".join(rng.choice('abc ,"\n\tü') for _ in range(rng.randrange(1, 40))) or "x"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mark", [",", ";"])
def test_a_csv_file_in_pieces_gives_the_rows_of_the_whole(tmp_path, seed, mark):
    rng = random.Random(seed)
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark, lineterminator=rng.choice(["\n", "\r\n"]))
    writer.writerow(["id", "text", "more"])
    for i in range(3000):
        cells = [i, "x" + words(rng), words(rng)]
        writer.writerow(cells if i % 500 != 7 else [*cells, "one too many"])
    path = tmp_path / "a.csv"
    path.write_text(out.getvalue(), newline="")
    whole = rows_of(expand([path]))
    assert len(whole) == 3000
    assert rows_of(in_pieces(path, 17_011)) == whole


def test_a_csv_file_with_a_stray_quote_is_read_whole_and_that_is_said(tmp_path):
    lines = ["id,text", *(f"{i},text {i}" for i in range(5000)), '7,a 5" disk']
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    (source,) = expand([path])
    pieces, note = pieces_of(source, Fields(), 10_000, look)
    assert pieces == [source]
    assert "a.csv is read as a whole" in note


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_lines_in_pieces_are_those_of_the_whole(tmp_path, suffix, end):
    rng = random.Random(1)
    lines = [json.dumps({"id": str(i), "text": "t" * rng.randrange(1, 90)}) for i in range(3000)]
    for i in (0, 5, 1500, 2999):
        lines[i] = "{bad"
    lines[700] = lines[701] = ""
    lines[1000] = json.dumps({"text": "y" * 30_000})
    path = tmp_path / f"a.{suffix}"
    path.write_text("\n".join(lines) + end)
    assert rows_of(in_pieces(path, 20_000)) == rows_of(expand([path]))


@pytest.mark.parametrize("at", ["exactly", "one before", "one behind"])
def test_a_cut_beside_a_newline_loses_and_doubles_no_row(tmp_path, at):
    line = b'{"id": "%05d", "text": "x"}\n'
    size = len(line % 0)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(line % i for i in range(2000)))
    part = 400 * size + {"exactly": 0, "one before": -1, "one behind": 1}[at]
    assert rows_of(in_pieces(path, part)) == rows_of(expand([path]))


def test_parquet_in_row_groups_numbers_its_rows_through_the_file(tmp_path):
    rows = {"id": [str(i) for i in range(5000)], "text": [f"t{i}" for i in range(5000)]}
    rows["text"][3210] = " "
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(rows), path, row_group_size=600, compression="none")
    pieces = in_pieces(path, 9_000)
    assert rows_of(pieces) == rows_of(expand([path]))
    assert [line for line, _, *rest in rows_of(pieces) if "empty text" in str(rest)] == [3211]


def test_what_has_no_lines_of_its_own_is_read_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 50} for _ in range(3000)], indent=1))
    (source,) = expand([path])
    assert pieces_of(source, Fields(), 10_000, look) == ([source], "")
    path.write_bytes("id,text\n".encode("utf-16") + ("1,a\n" * 9000).encode("utf-16-le"))
    source = replace(source, format="csv")
    assert pieces_of(source, Fields(), 10_000, look) == ([source], "")
