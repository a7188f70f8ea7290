"""Workers that lie: whatever one writes or sends costs that worker, and nobody else."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import given, strategies as st

from memworker import EmbeddingPool
from memworker.errors import TextFailed, WorkerStartFailed
from memworker.pool import messages
from memworker.pool.arena import Progress, Region, SlotShape
from memworker.pool.incoming import Incoming, Nonsense, checked, longest_message
from tests.pool.liar import KINDS, Liar

# More: MEMWORKER_LIES=500 python -m pytest tests/pool/test_nonsense.py
LIES = int(os.environ.get("MEMWORKER_LIES", 16))
PATIENCE_S = 120.0
# These change nothing that is looked at, or are refused by the system.
HARMLESS = {"progress", "truncate"}
OTHERS = [f"text {number}" * (number % 7) for number in range(300)]


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool(Liar(), workers=2) as pool:
        yield pool


def lengths(texts):
    return [len(text.encode()) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_a_lie_costs_its_worker_and_nobody_else(pool, kind, tmp_path):
    before = pool.work.restarts
    lie = ["before", f"lie {kind} {tmp_path}/flag", "after"]
    others = [pool.submit(OTHERS) for _ in range(3)]
    lying = pool.submit(lie)
    question = pool.submit(["what?"], kind="query")
    others += [pool.submit([text]) for text in OTHERS[:20]]
    assert lying.result(PATIENCE_S)[:, 1].tolist() == lengths(lie)
    assert question.result(PATIENCE_S)[:, 1].tolist() == [5]
    for number, other in enumerate(others):
        texts = OTHERS if number < 3 else [OTHERS[number - 3]]
        assert other.result(PATIENCE_S)[:, 1].tolist() == lengths(texts)
    assert (tmp_path / "flag").exists()
    # A lie told with its last breath may be found out a moment after the answer.
    pool.embed(OTHERS)
    if kind not in HARMLESS:
        assert pool.work.restarts > before


def test_seeded_lies_all_at_once(pool, tmp_path):
    rng = random.Random(LIES)
    lies = [f"lie {rng.choice(KINDS)}:{seed} {tmp_path}/{seed}" for seed in range(LIES)]
    futures = {}
    for lie in lies:
        for texts in ([lie], OTHERS[: rng.randrange(1, 300)], [rng.choice(OTHERS)]):
            futures[pool.submit(texts, kind=rng.choice(["passage", "query"]))] = texts
    for future, texts in futures.items():
        assert future.result(PATIENCE_S + LIES)[:, 1].tolist() == lengths(texts)
    assert pool.pending_tokens == 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("status", "it gave row 0 of 1 the status"),
        ("ready", "it sent Ready out of turn"),
    ],
)
def test_who_always_lies_about_a_text_fails_that_text_and_is_quoted(pool, kind, words):
    others = [pool.submit([text]) for text in OTHERS[:50]]
    with pytest.raises(TextFailed, match=f"the text ended 3 workers.*{words}"):
        pool.embed([f"lie {kind}"])
    for text, other in zip(OTHERS, others, strict=False):
        assert other.result(PATIENCE_S)[0, 1] == len(text.encode())


def test_work_that_shares_a_worker_with_a_guilty_text_is_not_blamed():
    """Before it dies the worker says that it was at everything it held."""
    with EmbeddingPool(Liar(), workers=1) as pool:
        bad = pool.submit(["lie blame_all"])
        good = [pool.submit(["x" * 4000] * 1000), pool.submit(["a question"], kind="query")]
        assert good[1].result(PATIENCE_S)[0, 1] == 10
        assert good[0].result(PATIENCE_S)[:, 1].tolist() == [4000] * 1000
        with pytest.raises(TextFailed, match="3 workers"):
            bad.result(PATIENCE_S)


@pytest.mark.parametrize("boot", ["ready", "noise"])
def test_lies_while_starting_end_in_an_error(boot):
    with pytest.raises(WorkerStartFailed):
        EmbeddingPool(Liar(boot=boot), workers=1).start()


SHAPE = SlotShape(rows=4, dim=2, text_bytes=64)


def frame(message):
    data = messages.encode(message)
    return len(data).to_bytes(4, "big") + data


@given(st.lists(st.binary(max_size=12)))
def test_any_bytes_are_messages_or_nonsense(pieces):
    incoming = Incoming(longest_message((SHAPE,)))
    try:
        for piece in pieces:
            list(incoming.feed(piece))
    except Nonsense:
        pass


@given(st.lists(st.integers(0, 9), max_size=8), st.lists(st.integers(1, 5)))
def test_messages_are_whole_however_they_are_cut(dims, cuts):
    incoming, data, heard = Incoming(1000), b"".join(map(frame, map(messages.Ready, dims))), []
    for cut in cuts:
        heard += incoming.feed(data[:cut])
        data = data[cut:]
    heard += incoming.feed(data)
    assert [message.dim for message in heard] == dims and not incoming.half


def test_what_was_checked_is_what_is_used():
    region = Region((SHAPE,))
    slot = region.slots[0]
    slot.status[:2], slot.tokens[:2] = [1, 2], [3, 0]
    done = messages.Done(1, 0, 1, 3, 3, 1e8, 0.25, {1: "why"})
    result = checked(done, slot, 2, taken_s=0.5)
    slot.status[:], slot.tokens[:] = 99, -1
    assert (result.status.tolist(), result.tokens.tolist()) == ([1, 2], [3, 0])
    assert (result.truncated, result.failed) == (1, 1)
    # More time than has passed would spoil the pool's figures.
    assert (result.tokenize_s, result.encode_s) == (0.5, 0.25)
    with pytest.raises(Nonsense, match="status 99"):
        checked(done, slot, 2, taken_s=0.5)
    region.close()


def test_the_largest_honest_answer_is_taken():
    shape = SlotShape(rows=1024, dim=1, text_bytes=8)
    reasons = {row: "\U0001f980" * messages.REASON_CHARS for row in range(shape.rows)}
    done = messages.Done(1 << 60, 2, 1 << 60, 1, 1, 0.0, 0.0, reasons)
    assert list(Incoming(longest_message((shape,))).feed(frame(done))) == [done]


def test_nothing_that_a_worker_writes_is_read_as_a_place():
    region = Region((SHAPE,))
    slot = region.slots[0]
    slot.fill(np.array([0, 1], np.int32), np.array([65], np.uint8))
    assert slot.untouched
    for progress in (Progress.BEGUN, -1, 1 << 62):
        slot._progress[0] = progress
        assert not slot.untouched
    region.close()
