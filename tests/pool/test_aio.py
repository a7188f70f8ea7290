"""The pool for coroutines, on real workers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool
from memworker.errors import PoolClosed, TextFailed, UsageError
from tests import PATIENCE_S
from tests.faults.loaders import Gated


def lengths(texts):
    return [len(text) for text in texts]


def test_a_hundred_coroutines_share_session_runs(tmp_path):
    gate = tmp_path / "gate"

    async def main():
        loader = Gated(str(gate), str(tmp_path / "begun"))
        async with AsyncEmbeddingPool(loader, workers=2) as pool:
            texts = [f"memory {number}" * (number % 5 + 1) for number in range(300)]
            asked = [asyncio.ensure_future(pool.embed([text])) for text in texts]
            scheduler = (await pool.pool())._scheduler
            while len(scheduler._requests) < len(texts):
                await asyncio.sleep(0)
            gate.touch()
            vectors = await asyncio.gather(*asked)
            assert [int(vector[0, 1]) for vector in vectors] == lengths(texts)
            assert (await pool.pool()).work.shards < 50

    asyncio.run(main())


def test_what_ends_together_wakes_the_loop_once(tmp_path):
    gate = tmp_path / "gate"

    async def main(pool):
        loop = asyncio.get_running_loop()
        calls, call = [], loop.call_soon_threadsafe
        shared = AsyncEmbeddingPool(pool=pool)
        asked = [asyncio.ensure_future(shared.embed([f"memory {n}"])) for n in range(200)]
        await asyncio.sleep(0)
        loop.call_soon_threadsafe = lambda *args, **options: (calls.append(1), call(*args))[1]
        gate.touch()
        await asyncio.gather(*asked)
        return len(calls)

    with EmbeddingPool(Gated(str(gate), str(tmp_path / "begun")), workers=1) as pool:
        assert 0 < asyncio.run(main(pool)) <= pool.work.shards < 50


def test_a_bad_text_fails_its_own_request_only():
    async def main():
        async with AsyncEmbeddingPool("echo", workers=1) as pool:
            answers = await asyncio.gather(
                *(pool.embed([text]) for text in ("good", "bad\ud800", "fine")),
                return_exceptions=True,
            )
            assert isinstance(answers[1], TextFailed)
            assert [answers[0][0, 1], answers[2][0, 1]] == [4, 4]

    asyncio.run(main())


def test_several_event_loops_share_one_pool():
    with EmbeddingPool("echo", workers=2) as pool:
        shared = AsyncEmbeddingPool(pool=pool)

        async def some(first):
            texts = ["x" * (first + number) for number in range(50)]
            vectors = await asyncio.gather(*(shared.embed([text]) for text in texts))
            return [int(vector[0, 1]) for vector in vectors] == lengths(texts)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(lambda first: asyncio.run(some(first)), range(4)))
        asyncio.run(shared.close())
        assert pool.embed(["still open"]).shape == (1, pool.dim)


def test_streams_in_order_and_stops_when_left():
    async def main():
        texts = [f"text {number}" for number in range(2500)]
        async with AsyncEmbeddingPool("echo", workers=2) as pool:
            seen = []
            async for batch, vectors in pool.embed_batches(iter(texts), batch_size=1100):
                assert vectors[:, 1].tolist() == lengths(batch)
                seen += batch
            assert seen == texts
            stream = pool.embed_batches(iter(texts), batch_size=100)
            first, _ = await anext(stream)
            await stream.aclose()
            assert first == texts[:100]

    asyncio.run(main())


def test_questions_and_rows():
    async def main():
        async with AsyncEmbeddingPool("echo", workers=1) as pool:
            assert (await pool.embed(["what?"], kind="query"))[0, 1] == 5
            embedded = await pool.embed_rows(["a", "bc"])
            assert embedded.tokens.tolist() == [1, 2] and not embedded.failures

    asyncio.run(main())


def test_what_the_pool_refuses_the_first_await_raises():
    async def main():
        pool = AsyncEmbeddingPool("echo", workers=0)
        with pytest.raises(UsageError, match="workers"):
            await pool.embed(["a"])
        await pool.close()
        with pytest.raises(UsageError, match="not both"):
            AsyncEmbeddingPool("echo", pool=pool)

    asyncio.run(main())


def test_a_closed_pool_says_so():
    async def main():
        pool = AsyncEmbeddingPool("echo", workers=1)
        await pool.embed(["a"])
        await pool.close()
        with pytest.raises(PoolClosed):
            await pool.embed(["a"])

    asyncio.run(main())


def test_token_ids_give_the_vectors_of_their_text():
    """[CLS] hello world [SEP]: the same as the text, and a foreign id fails alone."""
    with EmbeddingPool(workers=1) as pool:
        rows = [[7592, 2088], [30_522], [], list(range(1000, 1400))]
        embedded = pool.submit_tokens(rows).result(PATIENCE_S)
        texts = pool.submit_rows(["hello world", ""]).result(PATIENCE_S)
        assert np.array_equal(embedded.vectors[[0, 2]], texts.vectors)
        assert embedded.tokens.tolist()[:1] == [4] and embedded.tokens[3] == 256
        assert embedded.truncated.tolist() == [False, False, False, True]
        assert list(embedded.failures) == [1] and "30521" in embedded.failures[1]
        for wrong in ([["a"]], [[-1]], [[1 << 40]], [[1.5]], [5]):
            with pytest.raises(UsageError, match=r"rows\[0\]"):
                pool.submit_tokens(wrong)


@pytest.mark.parametrize("texts", [None, 5, "one", [None], b"one"])
def test_what_are_no_texts_is_told_so(texts):
    async def main():
        async with AsyncEmbeddingPool("echo", workers=1) as pool:
            with pytest.raises(TypeError, match=r"texts(\[0\] is| must be a list of str)"):
                await pool.embed(texts)
            assert len(await pool.embed(text for text in ["a", "b"])) == 2

    asyncio.run(main())
