"""The journal: what was appended is read back, whatever was torn off its end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from memworker.store import journal
from memworker.store.journal import Committed, Ended, InputFile, Journal, Repaired, Started
from tests import PATIENCE_S

TEXT = st.text(max_size=30)
COUNT = st.integers(0, 2**40)
RECORDS = st.one_of(
    st.builds(
        Started,
        run=TEXT,
        at=TEXT,
        pid=COUNT,
        table=st.none() | TEXT,
        job=TEXT,
        inputs=st.lists(st.builds(InputFile, TEXT, COUNT, COUNT, TEXT), max_size=3).map(tuple),
        names=st.lists(TEXT, max_size=3).map(tuple),
        model=TEXT,
        options=st.dictionaries(TEXT, TEXT, max_size=3),
        version=st.none() | COUNT,
    ),
    st.builds(Committed, TEXT, TEXT, TEXT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT),
    st.builds(Ended, TEXT, TEXT, st.none() | TEXT, TEXT, COUNT, COUNT, st.none() | COUNT, TEXT),
    st.builds(Repaired, TEXT, TEXT, st.lists(COUNT, max_size=3).map(tuple), COUNT),
)


@given(st.lists(RECORDS, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_a_journal_cut_anywhere_keeps_every_whole_line(records, data):
    lines = [journal.encode(record) for record in records]
    whole = b"".join(lines)
    assert list(journal.decode(whole)) == records
    cut = data.draw(st.integers(0, len(whole)))
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    assert list(journal.decode(whole[:cut])) == records[: sum(end <= cut for end in ends)]


@given(RECORDS, st.data())
@settings(max_examples=150, deadline=None)
def test_one_flipped_bit_is_noticed(record, data):
    line = bytearray(journal.encode(record))
    at = data.draw(st.integers(0, len(line) - 2))
    line[at] ^= 1 << data.draw(st.integers(0, 7))
    assert list(journal.decode(bytes(line))) == []


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_as_no_records(raw):
    assert journal.decode(raw) == ()


def commit(position, run="r", table="t"):
    return Committed(run, journal.now(), table, position, position, position, 0, 0, 0)


def test_is_appended_and_reopened(tmp_path):
    with Journal(tmp_path, "t") as kept:
        assert kept.before == ()
        kept.append(commit(1))
    with (tmp_path / journal.FILE).open("ab") as file:
        file.write(b'{"event":"comm')
    with Journal(tmp_path, "t") as kept:
        assert [record.position for record in kept.before] == [1]
        kept.append(commit(2))
    assert [record.position for record in journal.read(tmp_path)] == [1, 2]
    assert journal.last_version(journal.read(tmp_path)) == 2
    assert (tmp_path / journal.FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("identity", ["another", None])
def test_a_dropped_tables_journal_is_begun_afresh(tmp_path, identity):
    with Journal(tmp_path, "t") as kept:
        kept.append(commit(1))
    with Journal(tmp_path, identity) as kept:
        assert kept.before == ()
    assert journal.read(tmp_path) == ()


def test_a_long_journal_is_condensed(tmp_path):
    with Journal(tmp_path, "t") as kept:
        for run in range(3):
            begin = ("", 1, None, "job", (), ("in",), "m", {}, None)
            kept.append(Started(str(run), *begin))
            for position in range(2000):
                kept.append(commit(position, run=str(run)))
    assert (tmp_path / journal.FILE).stat().st_size > 1 << 20
    with Journal(tmp_path, "t"):
        assert (tmp_path / journal.FILE).stat().st_size < 2000
    last = [r.position for r in journal.read(tmp_path) if isinstance(r, Committed)]
    assert last == [1999] * 3


def test_a_record_that_cannot_be_written_leaves_no_half_line(tmp_path):
    """A limit on file size stands for the full disk: the kernel writes half of the line."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from memworker.errors import StoreError\n"
        "from memworker.store.journal import Journal\n"
        "from tests.store.test_journal import commit\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder = Path(sys.argv[1])\n"
        "with Journal(folder, 't') as kept:\n"
        "    kept.append(commit(1))\n"
        "    size = (folder / 'journal.jsonl').stat().st_size\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))\n"
        "    try: kept.append(commit(2))\n"
        "    except StoreError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert "cannot be written: File too large" in done.stdout
    (kept,) = journal.read(tmp_path)
    assert kept.position == 1 and (tmp_path / journal.FILE).read_bytes().endswith(b"}\n")
