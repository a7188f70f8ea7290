"""Memory that does not grow with the rows: with the collector off, long streams stay flat."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref

import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool, Memory, ingest
from memworker.errors import MemworkerError, TextFailed
from memworker.ingestion.export import embed_to_file
from memworker.ingestion.reembedding import reembed
from memworker.pool.echo import EchoLoader
from memworker.pool.requests import Request
from memworker.serve.app import create_app
from memworker.serve.options import ServeOptions
from memworker.serve.service import Service
from tests.buffers import collector_off, private_bytes
from tests.faults.loaders import BAD, Choosy
from tests.faults.saboteur import Saboteur

# 4 kB a vector, so that a few thousand rows are a lot.
WIDE = EchoLoader(1024)
ALLOWED = 64 << 20


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool(WIDE, workers=1) as pool:
        yield pool


def texts(count, start=0):
    return [f"text {number}" for number in range(start, start + count)]


@contextlib.contextmanager
def flat():
    """Give a function to call now and then: memory may not grow after its first call."""
    first = []

    def look():
        first.append(private_bytes())
        assert first[-1] - first[0] < ALLOWED, f"grew by {first[-1] - first[0]:,} bytes"

    with collector_off():
        yield look


def test_59_a_long_stream(pool):
    with flat() as look:
        # 320 MB of vectors; until some have come, those in flight make up what is held.
        batches = pool.embed_batches(iter(texts(80_000)), batch_size=4000)
        for number, (batch, vectors) in enumerate(batches):
            assert len(batch) == len(vectors)
            if number >= 4:
                look()
        del batch, vectors


def test_59_what_has_landed_is_the_callers_alone(pool):
    with collector_off():
        seen = []
        for _, embedded in pool.stream([texts(2000, start) for start in range(0, 20_000, 2000)]):
            assert all(array() is None for array in seen)
            seen.append(weakref.ref(embedded.vectors))
            del embedded


def test_59_requests_of_every_kind(pool):
    with flat() as look:
        for start in range(0, 60_000, 3000):
            some = texts(3000, start)
            pool.embed(some)
            future = pool.submit(some)
            future.result()
            del future
            with contextlib.closing(pool.stream([some])) as stream:
                next(stream)
            pool.submit(some).cancel()
            look()


def test_59_requests_that_fail():
    with EmbeddingPool(Choosy(4096), workers=1) as pool, flat() as look:
        for _ in range(8):
            failed(pool.embed, [*texts(1000), BAD])
            future = pool.submit([*texts(1000), BAD])
            assert isinstance(future.exception(), TextFailed)
            del future
            look()


def test_59_a_pool_that_is_closed_under_its_callers():
    with collector_off():
        pool = EmbeddingPool(WIDE, workers=1)
        waiting = [pool.submit(texts(20_000, start)) for start in range(0, 100_000, 20_000)]
        pool.close()
        for future in waiting:
            future.exception()
        del waiting, future
        # Nor does the pool, which its owner may keep, keep anything of what was asked of it.
        assert not [thing for thing in gc.get_objects() if isinstance(thing, Request)]
        assert pool.work.texts >= 0


def test_59_a_pool_that_fails():
    with collector_off():
        failed(EmbeddingPool(Saboteur(1024, boot="raise"), workers=1).start)
        with EmbeddingPool(Saboteur(1024), workers=1) as pool:
            failed(pool.embed, ["kill", *texts(100)])


def test_59_coroutines(pool):
    async def main():
        async with AsyncEmbeddingPool(pool=pool) as same:
            with flat() as look:
                async for batch, vectors in same.embed_batches(texts(60_000), batch_size=3000):
                    assert len(batch) == len(vectors)
                    look()
                del batch, vectors
                for start in range(0, 30_000, 3000):
                    await asyncio.gather(*(same.embed(texts(300, start + n)) for n in range(10)))
                    look()

    asyncio.run(main())


def test_59_an_ingest(tmp_path):
    db = tmp_path / "db"
    with collector_off():
        rows = ({"text": text} for text in texts(12_000))
        done = ingest(rows, db=db, table="t", model=WIDE, workers=1)
        assert done.written == 12_000
    with collector_off():
        broken = (_nothing_there(db) if n == 9_000 else {"text": f"new {n}"} for n in range(20_000))
        failed(ingest, broken, db=db, table="t", model=WIDE, workers=1)
        del broken


def failed(function, *arguments, **options):
    """Call what must fail, and forget the error at once, which `pytest.raises` would not."""
    try:
        function(*arguments, **options)
    except MemworkerError:
        return
    raise AssertionError("it did not fail")


def _nothing_there(db, table="t"):
    """Let the commits that follow fail: the versions have vanished."""
    for path in (db / f"{table}.lance/_versions").iterdir():
        path.unlink()
    return {"text": "the last that is read"}


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_59_a_file_of_vectors(tmp_path, suffix):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(12_000)))
    with collector_off():
        embed_to_file([path], tmp_path / f"out{suffix}", model=WIDE, workers=1)


def test_59_another_models_vectors(tmp_path):
    rows = ({"text": text} for text in texts(10_000))
    ingest(rows, db=tmp_path / "db", table="t", model=EchoLoader(8), workers=1)
    with collector_off():
        reembed(tmp_path / "db", "t", model=WIDE, workers=1)


def test_59_memories(tmp_path, pool):
    with Memory(tmp_path / "db", pool=pool) as memory, flat() as look:
        for start in range(0, 16_000, 1000):
            memory.add_batch(texts(1000, start), user_id="alice")
            failed(memory.update, "nobody", "text")
            look()
        memory.search("text 5", filters={"user_id": "alice"})


def test_59_memories_that_cannot_be_committed(tmp_path, pool):
    with Memory(tmp_path / "db", pool=pool) as memory:
        memory.add("one", user_id="alice")
        _nothing_there(tmp_path / "db", "memories")
        with flat() as look:
            for start in range(0, 20_000, 1000):
                failed(memory.add_batch, texts(1000, start), user_id="alice")
                look()


def test_59_requests_over_http(pool):
    sent = json.dumps({"model": pool.identity.name, "input": texts(1000)}).encode()

    async def main():
        service = Service(ServeOptions())
        service.open(pool)
        app = create_app(service)
        with flat() as look:
            for _ in range(20):
                assert await _posted(app, "/v1/embeddings", sent) > 4_000_000
                look()
        service.close()

    asyncio.run(main())


async def _posted(app, path, body):
    """Ask as a server does, without a client, whose cycles are its own; give the reply's bytes."""
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    received = 0

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        nonlocal received
        assert message.get("status", 200) == 200
        received += len(message.get("body", b""))

    await app({**scope, "headers": headers}, receive, send)
    return received
