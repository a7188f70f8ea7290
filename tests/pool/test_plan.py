"""Cuts: every row once, within bounds, long ones first, cheap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from memworker.pool import plan

LIMITS = plan.SlotLimits(rows=100, text_bytes=5000)
COSTS = plan.Costs(max_tokens=256, shard_tokens=500, batch_tokens=128)

lengths = st.lists(st.integers(0, 5000), max_size=400).map(lambda xs: np.array(xs, np.int64))
counts = st.lists(st.integers(0, 256), max_size=400).map(lambda xs: np.array(xs, np.int64))


@given(lengths, st.integers(1, 9))
def test_shards_hold_every_row_once_within_the_slot(byte_lengths, workers):
    shards = plan.cut_shards(byte_lengths, COSTS, LIMITS, workers=workers)
    rows = np.concatenate([*shards, np.zeros(0, np.int64)])
    assert sorted(rows.tolist()) == list(range(len(byte_lengths)))
    assert (np.diff(byte_lengths[rows]) <= 0).all()
    for shard in shards:
        assert 0 < len(shard) <= LIMITS.rows
        assert byte_lengths[shard].sum() <= LIMITS.text_bytes


@given(lengths.filter(lambda xs: len(xs) >= 9), st.integers(1, 9))
def test_there_are_shards_enough_for_all_workers(byte_lengths, workers):
    assert len(plan.cut_shards(byte_lengths, COSTS, LIMITS, workers=workers)) >= workers


@given(counts)
def test_micro_batches_hold_every_row_once_within_the_budget(token_counts):
    batches = list(plan.cut_micro_batches(token_counts, COSTS))
    rows = np.concatenate([*batches, np.zeros(0, np.int64)])
    assert sorted(rows.tolist()) == list(range(len(token_counts)))
    assert (np.diff(token_counts[rows]) <= 0).all()
    step = 1 + len(token_counts) // 128
    for batch in batches:
        padded = len(batch) * max(int(token_counts[batch].max()), 1)
        assert padded <= COSTS.batch_tokens or len(batch) <= step


def cost(batches, token_counts):
    return sum(COSTS.run_tokens + len(b) * max(int(token_counts[b].max()), 1) for b in batches)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_micro_batches_are_the_cheapest_of_all_cuts(values):
    token_counts = np.array(values, np.int64)
    order = np.argsort(-token_counts, kind="stable")
    cheapest = float("inf")
    for cuts in range(1 << (len(values) - 1)):
        ends = [i + 1 for i in range(len(values) - 1) if cuts >> i & 1] + [len(values)]
        starts = [0, *ends[:-1]]
        batches = [order[a:b] for a, b in zip(starts, ends, strict=True)]
        if all(len(b) * token_counts[b[0]] <= COSTS.batch_tokens or len(b) == 1 for b in batches):
            cheapest = min(cheapest, cost(batches, token_counts))
    assert cost(plan.cut_micro_batches(token_counts, COSTS), token_counts) == cheapest


FEW = replace(COSTS, lengths=(4, 8, 16, 64), batch_tokens=256)


@given(counts)
def test_runs_have_few_shapes_where_each_is_compiled(token_counts):
    step = 1 + len(token_counts) // 128
    held = 0
    for batch in plan.cut_micro_batches(token_counts, FEW):
        longest = max(int(token_counts[batch].max()), 1)
        length = FEW.length(longest)
        rows = FEW.rows(len(batch), length)
        held += len(batch)
        assert length >= longest and (length in FEW.lengths or longest > FEW.lengths[-1])
        assert len(batch) <= rows and (rows * length <= FEW.batch_tokens or len(batch) <= step)
    assert held == len(token_counts)


def test_rows_come_in_few_numbers_and_in_as_many_as_there_is_room_for():
    assert [FEW.length(longest) for longest in (1, 4, 5, 17, 64, 70)] == [4, 4, 8, 64, 64, 70]
    assert [FEW.rows(texts, 8) for texts in (1, 2, 5, 7, 13, 25, 32)] == [1, 2, 6, 8, 16, 32, 32]
    assert {FEW.rows(texts, 4) for texts in range(1, 65)} == {
        1,
        2,
        3,
        4,
        6,
        8,
        12,
        16,
        24,
        32,
        48,
        64,
    }
    assert FEW.rows(5, 48) == 5 and FEW.rows(3, 400) == 3
    assert COSTS.length(37) == 37 and COSTS.rows(5, 37) == 5


@given(lengths, st.integers(1, 9))
def test_windows_cover_all_rows_in_order(byte_lengths, workers):
    ends = plan.cut_windows(byte_lengths, COSTS, workers=workers)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(byte_lengths)


def test_cuts_depend_on_the_input_alone():
    byte_lengths = np.random.default_rng(7).integers(1, 900, 3000)
    first = plan.cut_shards(byte_lengths, COSTS, LIMITS, workers=2)
    second = plan.cut_shards(byte_lengths, COSTS, LIMITS, workers=2)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("text_bytes", [0, 100, 4000])
def test_estimates_stay_within_the_truncation(text_bytes):
    estimate = plan.estimate_tokens(np.array([text_bytes]), COSTS)[0]
    assert COSTS.row_tokens <= estimate <= COSTS.max_tokens
