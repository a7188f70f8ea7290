"""Tuning measures real pools, keeps the best, and later pools start with it."""

from __future__ import annotations

import pytest

from memworker import EmbeddingPool
from memworker.errors import NoRows, UsageError
from memworker.pool import machine, remembered, sizing
from memworker.pool.budget import Budget
from memworker.pool.engine import resolve
from memworker.pool.tuning import BATCH_TOKENS, tune


@pytest.fixture
def own_memory(monkeypatch, tmp_path):
    """A memory of this machine that holds nothing yet."""
    monkeypatch.setattr(remembered, "_file", lambda: tmp_path / "machine.json")


def test_the_best_setting_is_kept_and_used(own_memory):
    seen = []
    texts = [f"memory number {number}" for number in range(300)]
    trials = tune(texts, precisions=["fp32"], seconds=0.1, report=seen.append)
    assert {trial.batch_tokens for trial in trials} == set(BATCH_TOKENS)
    assert all(trial.tokens_per_s > 0 and trial.memory_bytes > 0 for trial in trials)
    (kept,) = [trial for trial in trials if trial.kept]
    assert kept.tokens_per_s == max(trial.tokens_per_s for trial in trials)
    assert len(seen) == len(trials)
    with EmbeddingPool() as pool:
        assert (pool.workers, pool.plan.costs.batch_tokens) == (kept.workers, kept.batch_tokens)


def test_what_is_asked_for_goes_before_what_was_tuned(own_memory):
    sizing.keep(resolve("all-MiniLM-L6-v2"), Budget(workers=2, batch_tokens=128))
    with EmbeddingPool(workers=1, batch_tokens=64) as pool:
        assert (pool.workers, pool.plan.costs.batch_tokens) == (1, 64)


def test_a_damaged_memory_is_no_memory(own_memory):
    file = remembered._file()
    for content in ("", "{", "[]", '{"x": 1}'):
        file.write_text(content)
        assert remembered.recall("x") is None
    remembered.keep("x", 5)
    assert remembered.recall("x") == 5


def test_memory_bounds_the_pool(own_memory):
    with EmbeddingPool(workers=2, memory="600MB") as pool:
        assert pool.plan.memory_bytes <= 600e6
    with pytest.raises(UsageError, match="not enough"):
        EmbeddingPool(memory="50MB")


def test_nothing_to_tune_with():
    with pytest.raises(NoRows):
        tune([])
    with pytest.raises(UsageError, match="echo"):
        tune(["x"], model="echo")


def test_the_usual_is_a_worker_a_core(own_memory):
    with EmbeddingPool("echo") as pool:
        assert pool.workers == machine.usable_cores()
