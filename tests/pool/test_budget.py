"""Budgets stay under what is allowed, and give up speed in the right order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from memworker.errors import UsageError
from memworker.pool.budget import Budget, Footprint, fit, parse_bytes

MINILM = Footprint(dim=384, weights_bytes=90 << 20, region_bytes=8 << 20)
WANTED = Budget(workers=16, batch_tokens=512)


@given(st.integers(600 << 20, 16 << 30))
def test_stays_under_the_allowance_and_uses_it(allowed):
    budget = fit(allowed, WANTED, MINILM)
    assert MINILM.estimate(budget) <= allowed
    assert 1 <= budget.workers <= WANTED.workers
    if allowed > MINILM.estimate(WANTED):
        assert budget == WANTED


def test_workers_go_last():
    budget = fit(MINILM.estimate(WANTED) - 1, WANTED, MINILM)
    assert budget == Budget(workers=16, batch_tokens=512, windows_in_flight=2)


def test_what_is_less_is_said():
    assert Budget(2, 256, 2).than(Budget(4, 256)) == (
        "2 workers instead of 4, 2 windows under way instead of 3"
    )


def test_storing_and_long_texts_count():
    stored, few = replace(MINILM, storing=True), replace(MINILM, window_tokens=1 << 16)
    one = Budget(workers=1, batch_tokens=512)
    assert stored.estimate(one) > MINILM.estimate(one) + (100 << 20)
    assert few.estimate(one) < MINILM.estimate(one)


def test_too_little_says_how_much_is_needed():
    with pytest.raises(UsageError, match=r"100 MiB is not enough.*needs about \d+ MiB"):
        fit(100 << 20, WANTED, MINILM)


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("4GB", 4 * 10**9), ("512MiB", 512 << 20), ("1.5g", 1_500_000_000), (77, 77), ("77", 77)],
)
def test_amounts(given, bytes_):
    assert parse_bytes(given) == bytes_


@pytest.mark.parametrize("given", ["", "much", "-1GB", "4 TB", "GB"])
def test_what_is_no_amount(given):
    with pytest.raises(UsageError, match="such as 4GB"):
        parse_bytes(given)
