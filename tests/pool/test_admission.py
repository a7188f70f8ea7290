"""What may wait is bounded: others wait their turn, or are told to come again."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool
from memworker.errors import PoolBusy, PoolClosed, UsageError
from memworker.pool import plan
from memworker.pool.admission import Admission
from memworker.pool.arena import Form
from memworker.pool.requests import Request, VectorsFuture, gather
from memworker.pool.rows import text_rows
from tests import PATIENCE_S
from tests.faults.loaders import Gated

BOUND = 100
LARGE = ["y" * 400]  # 400 bytes are some 95 tokens


@pytest.fixture
def gated(tmp_path):
    """A pool that does nothing until its gate is opened, with room for one large text."""
    loader = Gated(str(tmp_path / "gate"), str(tmp_path / "begun"))
    with EmbeddingPool(loader, workers=1, max_pending_tokens=BOUND) as pool:
        yield pool, tmp_path / "gate"


def waiting(pool):
    """Count those who stand in line."""
    return sum(admission.waiting for admission in pool._scheduler._admissions)


def test_a_full_pool_is_busy_and_says_when_to_come_again(gated):
    pool, gate = gated
    first = pool.submit(LARGE)
    with pytest.raises(PoolBusy, match=r"bound of 100.*Try again in") as caught:
        pool.submit(LARGE, wait_s=0)
    assert caught.value.retry_after_s > 0
    assert pool.pending_tokens == 96
    gate.touch()
    assert first.result(PATIENCE_S).shape == (1, 8)
    assert pool.submit(LARGE, wait_s=0).result(PATIENCE_S).shape == (1, 8)
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
        while waiting(pool) < number + 1:
            pass
    gate.touch()
    for caller in callers:
        caller.join(PATIENCE_S)
    assert pool.embed(LARGE).shape == (1, 8)
    assert order == [0, 1, 2, 3, 4]


def test_a_question_does_not_stand_in_line_behind_bulk(gated):
    pool, gate = gated
    pool.submit(LARGE)
    question = pool.submit(["question"], kind="query", wait_s=0)
    gate.touch()
    assert question.result(PATIENCE_S)[0, 1] == 8


def test_a_request_larger_than_the_bound_is_taken_when_nothing_waits(gated):
    pool, gate = gated
    gate.touch()
    assert pool.embed(["x" * 4000]).shape == (1, 8)


def test_cancelling_makes_room(gated):
    pool, gate = gated
    assert pool.submit(LARGE).cancel()
    second = pool.submit(LARGE, wait_s=0)
    gate.touch()
    assert second.result(PATIENCE_S).shape == (1, 8)


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
    while not waiting(pool):
        pass
    pool.close()
    caller.join(PATIENCE_S)
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
    assert done.wait(PATIENCE_S)
    assert [future.result(PATIENCE_S).shape for future in chained] == [(1, 8), (1, 8)]


def test_coroutines_wait_for_room_and_may_give_up(gated):
    pool, gate = gated

    async def main():
        shared = AsyncEmbeddingPool(pool=pool)
        first = asyncio.ensure_future(shared.embed(LARGE))
        await asyncio.sleep(0)
        gives_up = asyncio.ensure_future(shared.embed(LARGE))
        waits = asyncio.ensure_future(shared.embed(LARGE))
        while waiting(pool) < 2:
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


def test_an_exception_of_a_signal_handler_gives_the_place_in_line_up(gated):
    pool, gate = gated
    first = pool.submit(LARGE)

    class Alarm(Exception):
        pass

    rung = threading.Event()

    def ring(*_):
        if not rung.is_set():
            rung.set()
            raise Alarm

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        caller = threading.get_ident()
        standing = threading.Thread(target=_ring_when_one_waits, args=(pool, caller, rung))
        standing.start()
        with pytest.raises(Alarm):
            pool.submit(LARGE)
        standing.join(PATIENCE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert waiting(pool) == 0
    gate.touch()
    first.result(PATIENCE_S)
    assert pool.embed(LARGE).shape == (1, 8)
    assert pool.pending_tokens == 0


def test_large_requests_cancelled_while_they_are_planned_leave_nothing_pending():
    """Planned in a thread, whose answer would be lost with the coroutine that waits for it."""

    async def main(pool):
        shared = AsyncEmbeddingPool(pool=pool)
        for _ in range(10):
            task = asyncio.ensure_future(shared.embed(["x" * 50] * 2000))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.get_running_loop().shutdown_default_executor()

    with EmbeddingPool("echo", workers=1) as pool:
        asyncio.run(main(pool))
        assert pool.embed(["last"]).shape == (1, pool.dim)
        assert pool.pending_tokens == 0


def test_a_coroutine_dropped_with_its_loop_leaves_nothing_pending(gated):
    pool, gate = gated
    first = pool.submit(LARGE)
    loop = asyncio.new_event_loop()
    # What asyncio says of a task that was dropped is not at issue.
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(AsyncEmbeddingPool(pool=pool).embed(LARGE))
    while not waiting(pool):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task, loop
    gate.touch()
    first.result(PATIENCE_S)
    pool.submit(["question"], kind="query").result(PATIENCE_S)
    gc.collect()
    assert pool.pending_tokens == 0


@pytest.mark.parametrize("rows", [False, True])
def test_a_cancelled_future_counts_as_done_to_those_who_wait_for_several(gated, rows):
    pool, gate = gated
    submit = pool.submit_rows if rows else pool.submit
    futures = [submit(["short"]) for _ in range(3)]
    assert futures[1].cancel() and futures[1].cancel()
    gate.touch()
    done, not_done = wait(futures, timeout=PATIENCE_S)
    assert len(done) == 3 and not not_done
    assert set(as_completed(futures, timeout=PATIENCE_S)) == set(futures)


def test_of_those_who_complete_and_cancel_one_comes_first():
    for _ in range(200):
        answer = VectorsFuture()
        with ThreadPoolExecutor(2) as both:
            cancelled, claimed = both.submit(answer.cancel), both.submit(answer.claim)
        assert cancelled.result() != claimed.result()


def test_a_shard_cancelled_while_it_is_gathered_is_no_error():
    request = Request(text_rows(["text"]), 8)
    costs, limits = plan.Costs(max_tokens=256), plan.SlotLimits(rows=10, text_bytes=1000)
    queue = deque(request.cut(costs, limits, workers=1, urgent=False))
    request.future.cancel()
    assert gather(queue, limits, 512.0) == (queue[0], [])


def test_the_cut_says_which_slots_a_shard_is_for(gated):
    """And halves of it are for the same, whatever fits into them."""
    short, long = Request(text_rows(["a"] * 99), 8, Form.QUERY), ["x" * 300_000, *["a"] * 99]
    for request, urgent in ((short, True), (Request(text_rows(long), 8, Form.QUERY), False)):
        shards = gated[0]._scheduler.prepare(request).shards
        assert {shard.urgent for shard in shards} == {urgent}
        assert {half.urgent for shard in shards for half in shard.split()} == {urgent}
    (passage,) = gated[0]._scheduler.prepare(Request(text_rows(["a"]), 8)).shards
    assert not passage.urgent


def _ring_when_one_waits(pool, caller, rung):
    while not waiting(pool):
        pass
    # A signal that comes just before the caller sleeps does not wake it: Python runs its handler
    # between two steps of its own.
    while not rung.is_set():
        signal.pthread_kill(caller, signal.SIGUSR1)
        rung.wait(0.05)
