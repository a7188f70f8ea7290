"""What inputs name: files, folders, globs, pipes; and standard input through a real process."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from memworker.errors import InputNotFound, UsageError
from memworker.ingestion.readers import Source, expand, read
from tests import PATIENCE_S

LINE = '{"text": "x"}\n'


@pytest.fixture
def tree(tmp_path, monkeypatch):
    files = [
        "b.jsonl",
        "a.csv",
        "notes.log",
        ".hidden.jsonl",
        "sub/c.JSONL.GZ",
        "sub/deep/d.txt.zst",
    ]
    for name in (*files, ".cache/e.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs, format=None):
    return [source.path for source in expand(inputs, format)]


def test_a_folder_gives_known_suffixes_sorted_without_hidden_files(tree):
    assert names(tree) == [
        str(tree / name) for name in ("a.csv", "b.jsonl", "sub/c.JSONL.GZ", "sub/deep/d.txt.zst")
    ]


def test_formats_and_compressions_come_from_suffixes(tree):
    assert expand(["sub"]) == [
        Source("sub/c.JSONL.GZ", "jsonl", "gz"),
        Source("sub/deep/d.txt.zst", "txt", "zst"),
    ]
    assert expand(["notes.log"], "txt") == [Source("notes.log", "txt", "")]


def test_globs(tree):
    assert names("*.jsonl") == ["b.jsonl"]
    assert names("**/*.[jJ]*") == ["b.jsonl", "sub/c.JSONL.GZ"]
    assert names("**") == ["a.csv", "b.jsonl", "sub/c.JSONL.GZ", "sub/deep/d.txt.zst"]
    Path("odd[1].jsonl").write_text(LINE)
    assert names("odd[1].jsonl") == ["odd[1].jsonl"]


def test_inputs_keep_their_order(tree):
    assert names("sub/deep", "-", Path("a.csv")) == ["sub/deep/d.txt.zst", "-", "a.csv"]


def test_no_such_file_names_its_neighbours(tree):
    with pytest.raises(InputNotFound, match=r"no such file: c.jsonl; near it there are: b.jsonl"):
        expand(["c.jsonl"])
    with pytest.raises(InputNotFound, match=r"no folder nowhere/at/all either"):
        expand(["nowhere/at/all/c.jsonl"])


def test_nothing_readable_names_the_suffixes(tree):
    Path("empty").mkdir()
    for nothing in ("empty", "*.parquet", "*.log"):
        with pytest.raises(InputNotFound, match=r"no file to read; .*\.jsonl.*\.parquet"):
            expand([nothing])


def test_usage_errors(tree):
    with pytest.raises(UsageError, match=r"notes.log: its suffix names no format; say --format"):
        expand(["notes.log"])
    with pytest.raises(UsageError, match=r"unknown format 'xml'; there are arrow, csv"):
        expand(["a.csv"], "xml")
    with pytest.raises(UsageError, match="no input"):
        expand([])


def test_errors_come_before_the_first_batch_is_asked_for(tree):
    with pytest.raises(InputNotFound):
        read(["b.jsonl", "nothing.jsonl"])


def test_a_named_pipe_is_read_as_jsonl(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(LINE * 3,))
    writer.start()
    assert sum(c.rows.num_rows for c in read([pipe])) == 3
    writer.join(PATIENCE_S)


COUNT = """
import sys
from memworker.ingestion.readers import read
batches = list(read(["-"], format=sys.argv[1] if sys.argv[1:] else None))
print(sum(c.rows.num_rows for c in batches), sum(len(c.rejects) for c in batches),
      {c.path for c in batches})
"""


@pytest.mark.parametrize(
    ("given", "format", "expected"),
    [
        (LINE.encode() * 5 + b"bad\n", (), "5 1 {'-'}"),
        (gzip.compress(LINE.encode() * 5), (), "5 0 {'-'}"),
        (b"text,id\nx,1\ny,2\n", ("csv",), "2 0 {'-'}"),
        (b"one\ntwo\n", ("txt",), "2 0 {'-'}"),
        (b"", (), "0 0 set()"),
    ],
    ids=["jsonl", "gzip", "csv", "txt", "nothing"],
)
def test_standard_input(given, format, expected):
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *format], input=given, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == expected


ROW_BY_ROW = """
from memworker.ingestion.readers import read
for batch in read(["-"]):
    print(batch.rows["text"].to_pylist(), flush=True)
"""


def test_rows_of_a_slow_producer_do_not_wait_for_a_full_batch():
    child = subprocess.Popen(
        [sys.executable, "-c", ROW_BY_ROW], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child, child.stdin:
        child.stdin.write(LINE.encode() + b'{"text": "half')
        child.stdin.flush()
        assert child.stdout.readline() == b"['x']\n"
        child.stdin.write(b' and half"}')
        child.stdin.close()
        assert child.stdout.read() == b"['half and half']\n"


PEAK = """
import resource, sys
from memworker.ingestion.readers import read
import msgspec, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = list(read(["-"]))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
rejects = [r for c in batches for r in c.rejects]
print(sum(c.rows.num_rows for c in batches), [r.line for r in rejects], rejects[0].reason, sep="|")
assert grown < 40_000, f"{grown} KiB"
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="no resource usage here")
def test_a_line_of_100_mb_does_not_grow_memory():
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PEAK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child, child.stdin:
        child.stdin.write(LINE.encode() + b'{"text": "')
        for _ in range(100):
            child.stdin.write(b"x" * 1_000_000)
        child.stdin.write(b'"}\n' + LINE.encode())
        child.stdin.close()
        rows, lines, reason = child.stdout.read().decode().strip().split("|")
    assert child.returncode == 0
    assert (rows, lines) == ("2", "[2]")
    assert reason.startswith("line over the cap of 5,242,880 bytes")
