"""Staged vectors: found by their text, whole or not there; and the one commit that takes them."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import contextmanager

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import StoreError, TableMismatch
from memworker.store import Table, VectorSpace, lock
from memworker.store.reembed import BATCH_ROWS, Reembedding
from memworker.store.staged import FOLDER, Staged, discard, text_digests, unfinished
from tests.store.helpers import SPACE, numbered, texts_by_id

DIM = 4
NEXT = VectorSpace("next", "int8", 128, DIM, "e" * 16)


@contextmanager
def opened(folder, space=NEXT):
    staged = Staged.open(folder, "t", space)
    try:
        yield staged
    finally:
        staged.close()


def digests(start, stop):
    return text_digests(pa.array([f"text {i}" for i in range(start, stop)]))


def vectors(start, stop):
    return np.arange(start * DIM, stop * DIM, dtype=np.float32).reshape(-1, DIM) + 1


def test_vectors_are_found_by_their_texts_in_any_order(tmp_path):
    with opened(tmp_path) as staged:
        for start, stop in ((0, 100), (100, 101), (101, 105), (105, 300)):
            staged.add(digests(start, stop), vectors(start, stop))
        wanted = np.random.default_rng(0).permutation(310)
        found, there = staged.take(digests(0, 310)[wanted])
        assert (
            there.tolist()
            == (wanted < 300).tolist()
            == staged.has(digests(0, 310)[wanted]).tolist()
        )
        assert np.array_equal(found[there], vectors(0, 310)[wanted][there])
    with opened(tmp_path) as again:
        assert len(again) == 300 and np.array_equal(again.take(digests(7, 9))[0], vectors(7, 9))


def test_a_digest_that_ends_in_a_zero_byte_is_a_digest_like_others(tmp_path):
    ending = np.array([b"a" * 15 + b"\0", b"a" * 14 + b"\0\0", b"\0" * 16], "S16")
    with opened(tmp_path) as staged:
        staged.add(ending[:2], vectors(0, 2))
        assert staged.has(ending).tolist() == [True, True, False]
        staged.add(ending[2:], vectors(2, 3))
        assert np.array_equal(staged.take(ending)[0], vectors(0, 3))


@pytest.mark.parametrize(
    ("vector_bytes", "digest_bytes", "left"), [(7, 0, 9), (0, 5, 9), (40, 16, 7)]
)
def test_what_was_not_written_whole_is_cut_off(tmp_path, vector_bytes, digest_bytes, left):
    with opened(tmp_path) as staged:
        staged.add(digests(0, 10), vectors(0, 10))
    for name, gone in (("vectors.f32", vector_bytes), ("texts.xxh3", digest_bytes)):
        path = tmp_path / FOLDER / name
        os.truncate(path, path.stat().st_size - gone)
    with opened(tmp_path) as staged:
        assert len(staged) == left and staged.has(digests(0, 10)).sum() == left
        staged.add(digests(left, 10), vectors(left, 10))
        assert np.array_equal(staged.take(digests(0, 10))[0], vectors(0, 10))


def test_another_space_is_refused_until_what_is_there_is_dropped(tmp_path):
    other = VectorSpace("other", "fp32", 128, DIM, "d" * 16)
    with opened(tmp_path) as staged:
        staged.add(digests(0, 12), vectors(0, 12))
    assert unfinished(tmp_path) == NEXT
    with pytest.raises(TableMismatch, match=r"half way to 'next' \(int8.*12 texts.*--discard"):
        Staged.open(tmp_path, "t", other)
    discard(tmp_path)
    assert unfinished(tmp_path) is None and not (tmp_path / FOLDER).exists()
    with opened(tmp_path, other) as staged:
        assert len(staged) == 0


def test_a_killed_beginning_or_end_leaves_nothing_to_go_by(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "vectors.f32").write_bytes(bytes(16))
    (tmp_path / FOLDER / "space.json").write_text('{"space": {"mod')
    assert unfinished(tmp_path) is None
    with opened(tmp_path) as staged:
        assert len(staged) == 0


@contextmanager
def file_size_limit(n_bytes):
    """Have writes beyond a size fail, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path):
    with opened(tmp_path) as staged:
        staged.add(digests(0, 10), vectors(0, 10))
        with file_size_limit(250), pytest.raises(StoreError, match="Make room"):
            staged.add(digests(10, 20), vectors(10, 20))
        staged.add(digests(10, 20), vectors(10, 20))
        assert np.array_equal(staged.take(digests(0, 20))[0], vectors(0, 20))


def state(db):
    return lock.state_dir(db, "t")


def filled(table, staged):
    """Give every text that is missing a vector of ones."""
    work = Reembedding(table.db, table.name, staged)
    looked = 0
    for found in work.missing():
        looked += found.rows
        staged.add(found.digests, np.ones((len(found.digests), DIM), np.float32))
    return work, looked


def test_every_batch_is_looked_at_and_switched(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    rows = 2 * BATCH_ROWS + 10
    for start in range(0, rows, 3000):
        table.append(numbered(start, min(start + 3000, rows)))
    table.delete({"id": {"in": ["id-0", "id-8192"]}})
    table.optimize()
    before = texts_by_id(table)
    with opened(state(tmp_path)) as staged:
        work, looked = filled(table, staged)
        assert looked == len(staged) == rows - 2
        with work.locked():
            version = work.switch()
    after = Table.open(tmp_path, "t")
    assert (after.version, after.space, after.identity) == (version, NEXT, table.identity)
    assert texts_by_id(after) == before


def test_without_all_vectors_nothing_is_switched(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(numbered(0, 10))
    with opened(state(tmp_path)) as staged:
        work, _ = filled(table, staged)
        table.append(numbered(10, 11))
        with work.locked():
            assert work.switch() is None
    assert (
        Table.open(tmp_path, "t").space == SPACE and table.append(numbered(0, 11)).duplicates == 11
    )


def test_damaged_vectors_are_not_switched_to(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(numbered(0, 10))
    with opened(state(tmp_path)) as staged:
        work, _ = filled(table, staged)
        with (state(tmp_path) / FOLDER / "vectors.f32").open("r+b") as file:
            file.write(bytes(4 * DIM))
        with work.locked(), pytest.raises(StoreError, match="damaged.*--discard"):
            work.switch()
    assert Table.open(tmp_path, "t").space == SPACE


def test_a_table_dropped_and_made_again_is_another(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    with opened(state(tmp_path)) as staged:
        work, _ = filled(table, staged)
        lancedb.connect(tmp_path).drop_table("t")
        Table.create(tmp_path, "t", SPACE)
        with pytest.raises(StoreError, match="dropped and made again"), work.locked():
            pass


def test_a_table_that_others_change_is_theirs_to_change_until_the_lock(tmp_path):
    """Rows that get another text while the rest is embedded are found again."""
    table = Table.create(tmp_path, "t", SPACE)
    table.append(numbered(0, 10))
    with opened(state(tmp_path)) as staged:
        work, _ = filled(table, staged)
        changed = numbered(100, 101).set_column(0, numbered(0, 1).schema.field("id"), [["id-3"]])
        assert table.append(changed, on_conflict="update").updated == 1
        missing = [found for found in work.missing() if len(found.texts)]
        assert [found.texts.to_pylist() for found in missing] == [["text 100"]]
        assert missing[0].ids.to_pylist() == ["id-3"]
