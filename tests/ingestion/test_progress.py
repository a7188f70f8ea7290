"""How far reading has come, and what the live line makes of it."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memworker.cli import progress
from memworker.ingestion.loop import RunningJob
from memworker.ingestion.readers import read
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.report import Counts
from memworker.ingestion.vectors_file import vectors_file

ROWS = [{"id": str(i), "text": f"text {i}"} for i in range(3000)]


def jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def gz(path):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", jsonl), ("a.jsonl.gz", gz), ("a.parquet", parquet)]
)
def test_reading_counts_the_bytes_on_the_disk(tmp_path, name, write):
    write(tmp_path / name)
    followed = ReadProgress()
    shares = []
    for _ in read([tmp_path / name], batch_rows=500, progress=followed):
        shares.append(followed.share)
    assert followed.total == (tmp_path / name).stat().st_size
    assert shares == sorted(shares) and followed.share == pytest.approx(1.0, abs=0.01)


def test_standard_input_has_no_total():
    followed = ReadProgress()
    read(["-"], progress=followed)
    assert followed.share is None


@pytest.mark.parametrize(
    ("limit", "total", "left"),
    [(None, 1000, 2000 / 0.222 - 2000), (2500, 1000, 500), (None, None, None), (2500, None, 500)],
)
def test_rows_left(limit, total, left):
    pool = SimpleNamespace(work=SimpleNamespace(texts=1500))
    counts = Counts(read=2000, duplicates=400, rejected=100)
    job = RunningJob(counts, ReadProgress(total, 222 if total else 0), pool)
    found = progress._rows_left(job, limit)
    assert found is None if left is None else found == pytest.approx(left)


def test_an_unfinished_vectors_file_of_a_killed_run_is_removed(tmp_path):
    (tmp_path / ".v.npy.0123456789abcdef.tmp").touch()
    (tmp_path / ".v.npy.mine.tmp").touch()
    with vectors_file(tmp_path / "v.npy", 2), vectors_file(tmp_path / "v.npy", 2):
        # That of a run that is not over is locked, and stays.
        assert len(list(tmp_path.glob(".v.npy.*"))) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"v.npy", ".v.npy.mine.tmp"}
