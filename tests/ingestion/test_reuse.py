"""Equal texts of a run are embedded once."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from memworker.ingestion.reuse import Reuse
from memworker.pool.requests import Embedded


def embedded(texts, broken=()):
    texts = texts.to_pylist()
    vectors = np.array([[float(t), 1.0] for t in texts], np.float32).reshape(-1, 2)
    failures = {i: f"{t} is broken" for i, t in enumerate(texts) if t in broken}
    vectors[list(failures)] = np.nan
    n = len(texts)
    return Embedded(vectors, np.zeros(n, np.int32), np.zeros(n, np.bool_), failures)


def strings(values):
    return pa.array([str(value) for value in values], pa.string())


def test_a_window_without_repeats_is_passed_through_uncopied():
    reuse, texts = Reuse(2), strings(range(5))
    shared = reuse.plan(texts, texts)
    assert shared.texts is texts and shared.reused == 0
    given = embedded(texts)
    assert reuse.settle(shared, given).vectors is given.vectors


def test_repeats_within_and_across_windows_share_one_vector():
    reuse = Reuse(2)
    first = reuse.plan(strings([7, 8, 7]), strings([7, 8, 7]))
    second = reuse.plan(strings([9, 8]), strings([9, 8]))
    assert (first.texts.to_pylist(), second.texts.to_pylist()) == (["7", "8"], ["9"])
    assert (first.reused, second.reused) == (1, 1)
    assert reuse.settle(first, embedded(first.texts)).vectors[:, 0].tolist() == [7, 8, 7]
    assert reuse.settle(second, embedded(second.texts)).vectors[:, 0].tolist() == [9, 8]


def test_the_repeats_of_a_failed_text_fail_with_its_reason():
    reuse = Reuse(2)
    plans = [reuse.plan(strings(rows), strings(rows)) for rows in ([1, 2, 1], [2, 1])]
    failures = [reuse.settle(plan, embedded(plan.texts, {"1"})).failures for plan in plans]
    assert failures == [{0: "1 is broken", 2: "1 is broken"}, {1: "1 is broken"}]


@pytest.mark.parametrize("capacity", [1, 3, 8, 20, 1000])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_every_row_gets_its_own_texts_vector_however_small_the_memory(capacity, in_flight):
    draw = random.Random(capacity)
    reuse, flying, embedded_texts, rows_in = Reuse(2, capacity), [], 0, 0
    for _ in range(300):
        rows = [draw.randrange(40) for _ in range(draw.randrange(1, 12))]
        flying.append((rows, reuse.plan(strings(rows), strings(rows))))
        rows_in += len(rows)
        if len(flying) == in_flight:
            rows, shared = flying.pop(0)
            embedded_texts += len(shared.texts)
            outcome = reuse.settle(shared, embedded(shared.texts, {"5"}))
            good = [i for i, row in enumerate(rows) if row != 5]
            assert outcome.vectors[good, 0].tolist() == [rows[i] for i in good]
            assert set(outcome.failures) == {i for i, row in enumerate(rows) if row == 5}
    assert embedded_texts < rows_in
    if capacity == 1000:
        assert embedded_texts == 40
