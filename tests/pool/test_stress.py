"""Everything at once, seeded: threads, coroutines, cancels, bad texts, killed workers, a close."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import numpy as np
import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool
from memworker.errors import PoolBusy, PoolClosed, TextFailed
from tests import PATIENCE_S
from tests.faults.loaders import BAD, Choosy

BOUND = 3_000
THREADS, CALLS, COROUTINES = 6, 60, 80
KILLS, TEXTS_BETWEEN_KILLS = 6, 5_000


@pytest.mark.parametrize("seed", [1, 2])
def test_every_request_ends_with_its_vectors_or_its_error(seed):
    with EmbeddingPool(Choosy(), workers=2, max_pending_tokens=BOUND) as pool:
        over = threading.Event()
        with ThreadPoolExecutor(THREADS + 2) as threads:
            killer = threads.submit(kill_workers, pool, random.Random(seed), over)
            callers = [
                threads.submit(call_often, pool, random.Random(100 * seed + number))
                for number in range(THREADS)
            ]
            callers.append(threads.submit(asyncio.run, await_many(pool, random.Random(-seed))))
            try:
                outcomes = [outcome for caller in callers for outcome in caller.result()]
            finally:
                over.set()
            kills = killer.result()
        # Each must have been met with, or the test has become tame.
        assert {"vectors", "bad", "cancelled", "busy"} <= set(outcomes)
        assert pool.embed(["still works"])[0, 1] == 11
        assert pool.pending_tokens == 0
        assert not pool._scheduler._requests
        assert pool.work.restarts == kills > 0


def test_closing_in_the_midst_ends_every_request():
    rng = random.Random(3)
    with EmbeddingPool(Choosy(), workers=2, max_pending_tokens=BOUND) as pool:
        begun = threading.Event()

        def call(number):
            own, ends = random.Random(number), []
            while True:
                try:
                    ends.append(ask(pool, own))
                except PoolClosed:
                    return ends
                finally:
                    begun.set()

        with ThreadPoolExecutor(THREADS + 1) as threads:
            callers = [threads.submit(call, rng.random()) for _ in range(THREADS)]
            callers.append(threads.submit(asyncio.run, await_until_closed(pool, rng)))
            begun.wait(PATIENCE_S)
            while pool.work.texts < TEXTS_BETWEEN_KILLS:
                os.sched_yield()
            pool.close()
            assert not wait(callers, PATIENCE_S).not_done
            assert any("vectors" in caller.result() for caller in callers)
        assert pool.pending_tokens == 0


def call_often(pool: EmbeddingPool, rng: random.Random) -> list[str]:
    return [ask(pool, rng) for _ in range(CALLS)]


def ask(pool: EmbeddingPool, rng: random.Random) -> str:
    """Ask for something in one of the ways there are, check the answer, say which it was."""
    way = rng.choice(["embed", "rows", "cancel", "cancel rows", "no wait", "tokens", "query"])
    if way == "tokens":
        rows = [[rng.randrange(100)] * rng.randrange(1, 30) for _ in range(rng.randrange(1, 40))]
        embedded = pool.submit_tokens(rows).result(PATIENCE_S)
        assert embedded.vectors[:, 1].tolist() == [4 * len(row) for row in rows]
        return "vectors"
    texts = some_texts(rng)
    if way == "rows":
        return checked_rows(texts, pool.submit_rows(texts).result(PATIENCE_S))
    if way.startswith("cancel"):
        submit = pool.submit if way == "cancel" else pool.submit_rows
        return cancelled(submit(texts), rng)
    kind = "query" if way == "query" else "passage"
    try:
        future = pool.submit(texts, kind=kind, wait_s=0 if way == "no wait" else None)
        return checked(texts, future.result(PATIENCE_S))
    except PoolBusy as busy:
        assert busy.retry_after_s > 0
        return "busy"
    except TextFailed as failed:
        assert failed.index == texts.index(BAD)
        return "bad"


def cancelled(future, rng: random.Random) -> str:
    for _ in range(rng.choice([0, 0, 10, 200])):
        os.sched_yield()
    gone = future.cancel()
    assert not wait([future], PATIENCE_S).not_done
    assert gone == future.cancelled()
    return "cancelled" if gone else "too late"


async def await_many(pool: EmbeddingPool, rng: random.Random) -> list[str]:
    shared = AsyncEmbeddingPool(pool=pool)
    outcomes: list[str] = []
    for _ in range(3):
        tasks = [asyncio.ensure_future(await_one(shared, rng)) for _ in range(COROUTINES)]
        for task in rng.sample(tasks, COROUTINES // 3):
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        assert all(isinstance(end, (str, CancelledError, asyncio.CancelledError)) for end in ends)
        outcomes += [end if isinstance(end, str) else "cancelled" for end in ends]
    return outcomes


async def await_one(shared: AsyncEmbeddingPool, rng: random.Random) -> str:
    texts = some_texts(rng)
    try:
        return checked(texts, await shared.embed(texts, kind=rng.choice(["passage", "query"])))
    except TextFailed as failed:
        assert failed.index == texts.index(BAD)
        return "bad"


async def await_until_closed(pool: EmbeddingPool, rng: random.Random) -> list[str]:
    shared = AsyncEmbeddingPool(pool=pool)
    outcomes: list[str] = []

    async def again():
        while True:
            outcomes.append(await await_one(shared, rng))

    ends = await asyncio.gather(*(again() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(end, PoolClosed) for end in ends), ends
    return outcomes


def kill_workers(pool: EmbeddingPool, rng: random.Random, over: threading.Event) -> int:
    """Kill a worker after every so many texts, until all is over; return how many."""
    for kills in range(KILLS):
        goal = pool.work.texts + TEXTS_BETWEEN_KILLS
        # Who dies while it starts had no work that could be lost.
        while pool.work.texts < goal or not pool._scheduler._supervisor.ready:
            if over.wait(0.005):
                return kills
        os.kill(rng.choice(pool.worker_pids()), signal.SIGKILL)
        while pool.work.restarts == kills:
            os.sched_yield()
    return KILLS


def some_texts(rng: random.Random) -> list[str]:
    rows = rng.choice([1, 1, 1, 1, 2, 15, 16, 17, 300, rng.randrange(1_000, 3_000)])
    texts = [chr(97 + rng.randrange(26)) * rng.choice([0, 3, 20, 90, 400]) for _ in range(rows)]
    if rng.random() < 0.15:
        texts[rng.randrange(rows)] = BAD
    return texts


def checked(texts: Sequence[str], vectors: np.ndarray) -> str:
    assert BAD not in texts
    assert np.array_equal(vectors[:, 1:3], expected(texts))
    return "vectors"


def checked_rows(texts: Sequence[str], embedded) -> str:
    bad = {row for row, text in enumerate(texts) if text == BAD}
    assert set(embedded.failures) == bad
    good = [row for row in range(len(texts)) if row not in bad]
    assert np.array_equal(embedded.vectors[good, 1:3], expected([texts[row] for row in good]))
    return "bad" if bad else "vectors"


def expected(texts: Sequence[str]) -> np.ndarray:
    """What the echo encoder gives: length and sum of a text's bytes."""
    return np.array(
        [(len(text), sum(text.encode()) % 65_521) for text in texts], np.float32
    ).reshape(-1, 2)
