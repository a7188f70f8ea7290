"""Long runs in files: the same answers, no memory of their own, nothing left behind."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, strategies as st

from memworker import heap
from memworker.store import sortedruns
from memworker.store.known import IdStatus, KnownIds
from memworker.store.sortedruns import SortedRuns
from tests.buffers import collector_off, private_bytes

FEW = 40


@pytest.fixture(scope="module")
def short_runs():
    """Let runs of a few rows be long already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sortedruns, "SPILLED_ROWS", FEW)
        patch.setattr(sortedruns, "_PIECE_ROWS", 7)
        yield


def hashes(*values):
    return np.array(values, np.uint64)


def test_59_a_million_known_ids_take_no_private_memory(tmp_path):
    rng = np.random.default_rng(1)
    known = KnownIds(folder=tmp_path)
    heap.give_back()
    with collector_off():
        before = private_bytes()
        for _ in range(0, 1 << 20, 8192):
            keys = rng.integers(0, 1 << 63, 8192, np.uint64)
            known.add(keys, keys)
        heap.give_back()
        grown = private_bytes() - before
    # All of them are 16 MB, and while two halves are merged 40.
    assert grown < 12 << 20, f"{grown:,} bytes"
    assert (known.find(keys, keys) == IdStatus.DUPLICATE).all()


@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=60)))
def test_statuses_follow_a_dictionary_wherever_runs_lie(short_runs, tmp_path_factory, batches):
    folder = tmp_path_factory.getbasetemp()
    known, truth = KnownIds(folder=folder), {}
    for rows in batches:
        # The caller has settled equal ids of one batch.
        rows = list(dict(rows).items())
        keys, records = hashes(*(k for k, _ in rows)), hashes(*(r for _, r in rows))
        expected = [
            IdStatus.NEW
            if key not in truth
            else IdStatus.DUPLICATE
            if truth[key] == record
            else IdStatus.CONFLICT
            for key, record in rows
        ]
        assert known.find(keys, records).tolist() == expected
        known.add(keys, records)
        truth.update(rows)


def test_long_runs_lie_in_files_without_a_name(short_runs, tmp_path):
    known = KnownIds(folder=tmp_path)
    for start in range(0, 400, 20):
        keys = np.arange(start, start + 20, dtype=np.uint64)
        known.add(keys, keys)
    longest, _ = known._records._runs[0]
    assert len(longest) >= FEW and not longest.flags.writeable and not longest.flags.owndata
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_folder_that_cannot_be_written_costs_memory_alone(
    short_runs, tmp_path, monkeypatch, number
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    for folder in (tmp_path, tmp_path / "nowhere"):
        known = KnownIds(folder=folder)
        for start in range(0, 200, 20):
            keys = np.arange(start, start + 20, dtype=np.uint64)
            known.add(keys, keys + np.uint64(start))
            assert known.find(keys, keys + np.uint64(start)).all()
        assert len(known._records) == 200 and not list(tmp_path.iterdir())


def test_runs_take_keys_and_values_of_any_kind(short_runs, tmp_path):
    """The places of vectors that wait, by their texts' digests, as well as ids."""
    rng = np.random.default_rng(3)
    places = SortedRuns(np.int64, tmp_path)
    digests = rng.integers(0, 256, (500, 16), np.uint8).view("S16").ravel()
    # A digest may end in bytes that are zero, or be nothing else.
    digests[7], digests[8] = b"", b"a"
    for start in range(0, 500, 20):
        places.add(digests[start : start + 20], np.arange(start, start + 20))
    longest, _ = places._runs[0]
    assert len(longest) >= FEW and not longest.flags.owndata
    mixed = np.concatenate([digests[::-1], digests[:3][::-1], np.array([b"nobody"], "S16")])
    there, found = places.find(mixed)
    assert there.tolist() == [True] * 503 + [False]
    assert found[:-1].tolist() == [*range(499, -1, -1), 2, 1, 0]
    places.add(digests[:1], np.array([1000]))
    assert places.find(digests[:2])[1].tolist() == [1000, 1] and len(places) == 501
