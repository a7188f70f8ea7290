"""Budgets stay under what is allowed, and give up speed in the right order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordPiece

from memworker.errors import UsageError
from memworker.pool.budget import Budget, Footprint, fit, parse_bytes, worker_bytes

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


def test_rows_of_tokens_are_as_wide_as_the_model_whatever_is_kept_of_vectors():
    one = Budget(workers=1, batch_tokens=512)
    whole, cut = replace(MINILM, dim=1024), replace(MINILM, dim=32, width=1024)
    assert whole.estimate(one) - cut.estimate(one) < 100 << 20
    assert cut.estimate(one) - replace(MINILM, dim=32).estimate(one) == 512 * 128 * (1024 - 32)


def test_the_longest_text_counts():
    one = Budget(workers=2, batch_tokens=512)
    usual = 512 * 128 * 384
    assert replace(MINILM, longest_bytes=usual).estimate(one) == MINILM.estimate(one)
    longest = replace(MINILM, longest_bytes=usual + (500 << 20))
    assert longest.estimate(one) == MINILM.estimate(one) + 2 * (500 << 20)
    assert fit(600 << 20, one, MINILM).workers == 2
    with pytest.raises(UsageError, match="--max-tokens"):
        fit(600 << 20, one, longest)


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


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("kind", ["Unigram", "WordPiece"])
def test_a_worker_with_many_words_takes_more(tmp_path, kind, pretty):
    """As measured: 9 MiB for 30,000 words of WordPiece, 282 for 250,000 of Unigram."""
    words = [f"word{number}" for number in range(250_000)]
    models = {
        "Unigram": lambda many: Unigram([(word, -1.0) for word in many], unk_id=0),
        "WordPiece": lambda many: WordPiece({w: i for i, w in enumerate(many)}, unk_token="word0"),
    }
    sizes = []
    for count in (30_000, 250_000):
        path = tmp_path / f"{count}.json"
        Tokenizer(models[kind](words[:count])).save(str(path), pretty=pretty)
        sizes.append(worker_bytes(path, 0) >> 20)
    few, many = {"Unigram": (23, 275), "WordPiece": (0, 72)}[kind]
    assert sizes == pytest.approx([few, many], abs=1)
