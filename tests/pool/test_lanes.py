"""Small requests pass bulk work, and bulk work goes on whatever comes."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool
from memworker.pool.echo import EchoEncoder
from tests import PATIENCE_S

STEP_ROWS = 16
# 430 bytes are some 102 tokens: what is of one such text is small, what is of 400 is not.
BULK = ["b" * 430] * 400
SMALL = ["s" * 130]
SMALL_TOKENS, BULK_TOKENS = 130 / 4.3 + 2, 400 * (430 / 4.3 + 2)


@dataclass(frozen=True)
class Recorder:
    """An echo encoder that begins once `gate` is there, and writes down what it embeds."""

    gate: str
    log: str
    dim: int = 8

    def __call__(self):
        return RecordingEncoder(self.gate, self.log, self.dim)


class RecordingEncoder:
    def __init__(self, gate, log, dim):
        self.gate, self.log, self.dim = Path(gate), Path(log), dim
        self.echo = EchoEncoder(dim)

    def encode(self, texts, rows):
        while not self.gate.exists():
            time.sleep(0.001)
        for start in range(0, len(texts), STEP_ROWS):
            end = min(start + STEP_ROWS, len(texts))
            part = rows.part(start, end)
            with self.log.open("a") as log:
                log.write("".join(texts[row][0] for row in range(start, end)))
            for _ in self.echo.encode(texts.part(start, end), part):
                pass
            rows.add(part, start)
            yield


@pytest.fixture
def gated(tmp_path):
    loader = Recorder(str(tmp_path / "gate"), str(tmp_path / "log"))
    with EmbeddingPool(loader, workers=1, max_pending_tokens=10_000_000) as pool:
        yield pool, tmp_path / "gate", tmp_path / "log"


def until(question):
    deadline = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.001)


def handed_out(pool):
    """Tell whether a worker has a small request's work."""
    (worker,) = pool._scheduler._supervisor.workers
    return any(given.shard.small for given in list(worker.slots.values()))


def test_a_small_request_waits_for_one_session_run_of_bulk_work(gated):
    pool, gate, log = gated
    bulk = [pool.submit(BULK) for _ in range(4)]
    small = pool.submit(SMALL)
    until(lambda: handed_out(pool))
    gate.touch()
    assert small.result(PATIENCE_S).shape == (1, 8)
    assert all(future.result(PATIENCE_S).shape == (400, 8) for future in bulk)
    assert log.read_text().index("s") <= STEP_ROWS


@pytest.mark.parametrize("how", ["threads", "coroutines"])
def test_callers_of_a_text_each_pass_too(gated, how):
    pool, gate, log = gated
    bulk = [pool.submit(BULK) for _ in range(4)]

    async def all_of_them():
        async with AsyncEmbeddingPool(pool=pool) as shared:
            asked = [asyncio.ensure_future(shared.embed(SMALL)) for _ in range(8)]
            await asyncio.to_thread(until, lambda: handed_out(pool))
            gate.touch()
            return await asyncio.gather(*asked)

    if how == "coroutines":
        assert len(asyncio.run(all_of_them())) == 8
    else:
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(pool.embed, SMALL) for _ in range(8)]
            until(lambda: handed_out(pool))
            gate.touch()
            assert all(one.result(PATIENCE_S).shape == (1, 8) for one in asked)
    for future in bulk:
        future.result(PATIENCE_S)
    # Before half of what was asked for earlier.
    assert log.read_text().rindex("s") < 4 * 400 / 2


def test_a_flood_of_small_requests_leaves_bulk_work_its_share(gated):
    pool, gate, log = gated
    bulk = [pool.submit(BULK) for _ in range(3)]
    small = [pool.submit(SMALL) for _ in range(3000)]
    until(lambda: handed_out(pool))
    gate.touch()
    for future in (*bulk, *small):
        future.result(PATIENCE_S)
    before = log.read_text()
    before = before[: before.rindex("b")]
    # While bulk work was there it had four fifths of the work, what passed at once apart.
    passed = before.count("s") * SMALL_TOKENS
    assert passed <= 3 * BULK_TOKENS / 4 + 4 * 512
    # And they were not starved: they had their share too.
    assert passed >= 3 * BULK_TOKENS / 20


def test_small_requests_without_bulk_work_are_gathered_as_ever(gated):
    pool, gate, _ = gated
    small = [pool.submit(SMALL) for _ in range(200)]
    gate.touch()
    for future in small:
        future.result(PATIENCE_S)
    # Some sixteen texts a session run, all but the first few.
    assert pool.work.shards < 40


def test_where_enough_waits_for_all_workers_a_shard_is_two_session_runs(gated):
    pool, gate, _ = gated
    first = pool.submit(SMALL)
    until(lambda: handed_out(pool))
    small = [pool.submit(SMALL) for _ in range(200)]
    gate.touch()
    for future in (first, *small):
        future.result(PATIENCE_S)
    # 6,450 tokens, of which a session run takes 512.
    assert pool.work.shards <= 2 + 6450 / 1024 + 2


def test_no_worker_takes_what_another_has_nothing_of(tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"
    with EmbeddingPool(Recorder(str(gate), str(log)), workers=2) as pool:
        first = [pool.submit(SMALL) for _ in range(2)]
        until(lambda: pool.busy_workers == 2)
        # 774 tokens: a session run, and what is left for the other worker.
        small = [pool.submit(SMALL) for _ in range(24)]
        gate.touch()
        for future in (*first, *small):
            future.result(PATIENCE_S)
        assert pool.work.shards == 4


def test_what_could_not_go_does_not_wake_the_pool_and_is_not_left_lying(gated):
    pool, gate, _ = gated
    scheduler = pool._scheduler
    first = pool.submit(SMALL)
    until(lambda: scheduler._enough_tokens > 0)
    rings, ring = [], scheduler._alarm.ring
    scheduler._alarm.ring = lambda: (rings.append(1), ring())
    few = [pool.submit(SMALL) for _ in range(10)]
    assert not rings
    # With these there is a choice: a busy worker gets its next shard early.
    many = [pool.submit(SMALL) for _ in range(100)]
    until(lambda: len(scheduler._supervisor.workers[0].slots) == 2)
    assert 1 <= len(rings) < 100
    gate.touch()
    for future in (first, *few, *many):
        future.result(PATIENCE_S)


def test_who_has_an_answer_finds_its_room_free():
    with EmbeddingPool("echo", workers=1) as pool:
        for _ in range(300):
            pool.embed(SMALL)
            assert not pool.pending_tokens


def test_room_comes_back_once_whoever_ends_a_request(gated):
    pool, gate, _ = gated
    futures = [pool.submit_rows(SMALL) for _ in range(400)]
    gate.touch()
    with ThreadPoolExecutor(4) as threads:
        # Some of them while they are being completed.
        cancelled = list(threads.map(lambda future: future.cancel(), futures[::2]))
    for future, gone in zip(futures[::2], cancelled, strict=True):
        assert gone or future.result(PATIENCE_S).vectors.shape == (1, 8)
    for future in futures[1::2]:
        future.result(PATIENCE_S)
    assert not pool.pending_tokens
    assert not pool._scheduler._requests
