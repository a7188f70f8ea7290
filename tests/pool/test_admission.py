"""What may wait is bounded: others wait their turn, or are told to come again."""

from __future__ import annotations

import asyncio
import threading

import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool
from memworker.errors import PoolBusy, PoolClosed, UsageError
from memworker.pool.admission import Admission
from tests.faults.loaders import Gated

BOUND = 100
LARGE = ["y" * 400]  # 400 bytes are some 95 tokens


@pytest.fixture
def gated(tmp_path):
    """A pool that does nothing until its gate is opened, with room for one large text."""
    loader = Gated(str(tmp_path / "gate"), str(tmp_path / "begun"))
    with EmbeddingPool(loader, workers=1, max_pending_tokens=BOUND) as pool:
        yield pool, tmp_path / "gate"


def test_a_full_pool_is_busy_and_says_when_to_come_again(gated):
    pool, gate = gated
    first = pool.submit(LARGE)
    with pytest.raises(PoolBusy, match=r"bound of 100.*Try again in") as caught:
        pool.submit(LARGE, wait_s=0)
    assert caught.value.retry_after_s > 0
    assert pool.pending_tokens == 96
    gate.touch()
    assert first.result(60).shape == (1, 8)
    assert pool.submit(LARGE, wait_s=0).result(60).shape == (1, 8)
    assert pool.pending_tokens == 0


def test_callers_wait_for_room_in_the_order_they_came(gated):
    pool, gate = gated
    pool.submit(LARGE)
    order: list[int] = []

    def call(number):
        pool.submit([LARGE[0] + "z" * number]).add_done_callback(lambda _: order.append(number))

    callers = []
    for number in range(5):
        callers.append(threading.Thread(target=call, args=(number,)))
        callers[-1].start()
        while pool._scheduler._bulk_admission.waiting < number + 1:
            pass
    gate.touch()
    for caller in callers:
        caller.join(60)
    assert pool.embed(LARGE).shape == (1, 8)
    assert order == [0, 1, 2, 3, 4]


def test_a_question_does_not_stand_in_line_behind_bulk(gated):
    pool, gate = gated
    pool.submit(LARGE)
    question = pool.submit(["question"], kind="query", wait_s=0)
    gate.touch()
    assert question.result(60)[0, 1] == 8


def test_a_request_larger_than_the_bound_is_taken_when_nothing_waits(gated):
    pool, gate = gated
    gate.touch()
    assert pool.embed(["x" * 4000]).shape == (1, 8)


def test_cancelling_makes_room(gated):
    pool, gate = gated
    assert pool.submit(LARGE).cancel()
    second = pool.submit(LARGE, wait_s=0)
    gate.touch()
    assert second.result(60).shape == (1, 8)


def test_closing_tells_those_who_wait(gated):
    pool, _ = gated
    pool.submit(LARGE)
    told = []

    def call():
        try:
            pool.submit(LARGE)
        except PoolClosed as error:
            told.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    while not pool._scheduler._bulk_admission.waiting:
        pass
    pool.close()
    caller.join(60)
    assert len(told) == 1


def test_a_callback_may_submit_and_does_not_block_the_pool(gated):
    pool, gate = gated
    chained = []
    done = threading.Event()

    def again(_):
        chained.extend([pool.submit(LARGE), pool.submit(LARGE)])
        done.set()

    pool.submit(LARGE).add_done_callback(again)
    gate.touch()
    assert done.wait(60)
    assert [future.result(60).shape for future in chained] == [(1, 8), (1, 8)]


def test_coroutines_wait_for_room_and_may_give_up(gated):
    pool, gate = gated

    async def main():
        shared = AsyncEmbeddingPool(pool=pool)
        first = asyncio.ensure_future(shared.embed(LARGE))
        await asyncio.sleep(0)
        gives_up = asyncio.ensure_future(shared.embed(LARGE))
        waits = asyncio.ensure_future(shared.embed(LARGE))
        while pool._scheduler._bulk_admission.waiting < 2:
            await asyncio.sleep(0)
        gives_up.cancel()
        gate.touch()
        answers = await asyncio.gather(first, gives_up, waits, return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == [
            *("ndarray", "CancelledError", "ndarray"),
        ]
        await shared.close()

    asyncio.run(main())
    assert pool.pending_tokens == 0
    assert pool.embed(LARGE).shape == (1, 8)


def test_giving_up_in_line_lets_the_next_one_in():
    line = Admission(10)
    assert line.enter(6) is None
    large, small = line.enter(9), line.enter(4)
    assert not large.turn.done() and not small.turn.done()
    line.give_up(large)
    assert small.turn.done() and line.pending == 10
    line.leave(6)
    line.leave(4)
    assert line.pending == 0 and line.waiting == 0


def test_a_bound_must_be_a_whole_number():
    with pytest.raises(UsageError, match="max_pending_tokens"):
        EmbeddingPool("echo", max_pending_tokens=0)
