"""AsyncMemory: the same memories for coroutines."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from memworker import AsyncEmbeddingPool, AsyncMemory, EmbeddingPool, Memory
from memworker.errors import MemoryNotFound, PoolClosed, ScopeMissing, TableMismatch
from memworker.pool import EchoLoader
from tests import PATIENCE_S
from tests.faults.loaders import Gated
from tests.memory.helpers import ALICE, one, texts
from tests.memory.test_group import queued_by


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


def test_all_methods(echo, db):
    async def main():
        async with AsyncMemory(db, pool=echo) as memory:
            first = one(await memory.add("A", **ALICE, metadata={"n": 1}))
            batch = await memory.add_batch([f"text {n}" for n in range(100)] + [""], **ALICE)
            assert [r.get("event") for r in batch["results"]] == ["ADD"] * 100 + [None]
            assert one(await memory.search("A", filters=ALICE, limit=1))["id"] == first["id"]
            assert await memory.update(first["id"], "B") == {
                "message": "Memory updated successfully!"
            }
            assert (await memory.get(first["id"]))["memory"] == "B"
            assert texts(await memory.get_all(filters=ALICE, limit=1)) == ["text 99"]
            assert await memory.count(ALICE) == 101
            await memory.delete(first["id"])
            with pytest.raises(MemoryNotFound):
                await memory.delete(first["id"])
            told = [event["event"] for event in await memory.history(first["id"])]
            assert told == ["ADD", "UPDATE", "DELETE"]
            await memory.delete(first["id"], erase=True)
            await memory.delete_all(**ALICE)
            assert await memory.count() == 0
            await memory.reset()
            with pytest.raises(ScopeMissing):
                await memory.get_all()
            hits = await memory.search("x", filters=ALICE, mode="text")
            assert hits == {"results": []} == await memory.add([], **ALICE)

    run(main())


def test_both_faces_have_the_same_methods():
    def signatures(face):
        return {
            name: str(inspect.signature(method))
            for name, method in inspect.getmembers(face, inspect.isfunction)
            if not name.startswith("_")
        }

    assert signatures(AsyncMemory) == signatures(Memory)


def test_many_coroutines_share_commits(echo, db):
    async def main():
        async with AsyncMemory(db, pool=echo) as memory:
            core = await memory._core()
            version, all_queued = core.table.version, queued_by(core._writer, 300)
            with core.table.changing():
                adds = asyncio.gather(*(memory.add(f"text {n % 150}", **ALICE) for n in range(300)))
                assert await asyncio.to_thread(all_queued.wait, PATIENCE_S)
            results = await adds
            assert sum(one(result)["event"] == "ADD" for result in results) == 150
            assert await memory.count() == 150
            # What was taken before the others came, and the others.
            assert core.table.version - version <= 2

    run(main())


def test_two_event_loops_may_share_it(echo, db):
    memory = AsyncMemory(db, pool=echo)
    run(memory.add("one", **ALICE))
    run(memory.add("two", **ALICE))
    assert run(memory.count()) == 2
    run(memory.close())
    run(memory.close())
    with pytest.raises(PoolClosed, match="this Memory is closed"):
        run(memory.add("three", **ALICE))
    with pytest.raises(PoolClosed):
        run(memory.count())


def test_an_async_pool_may_be_given(echo, db):
    async def main():
        async with AsyncEmbeddingPool(pool=echo) as pool, AsyncMemory(db, pool=pool) as memory:
            await memory.add("x", **ALICE)
            return await memory.count()

    assert run(main()) == 1


def test_what_opening_raises_is_raised_by_the_first_await(echo, db):
    Memory(db, pool=echo).close()

    async def main():
        memory = AsyncMemory(db, model=EchoLoader(dim=8))
        for _ in range(2):
            with pytest.raises(TableMismatch):
                await memory.count()
        await memory.close()

    run(main())


def test_a_cancelled_add_is_dropped_while_it_is_not_embedded(echo, db):
    async def main():
        async with AsyncMemory(db, pool=echo) as memory:
            core = await memory._core()
            # Everything that may be in flight is, so the next one waits for its turn.
            core.enter(1 << 30)
            waiting = asyncio.ensure_future(memory.add("dropped", **ALICE))
            await asyncio.sleep(0)
            assert core._admission.waiting == 1
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            core.leave(1 << 30)
            await memory.add("kept", **ALICE)
            assert texts(await memory.get_all(filters=ALICE)) == ["kept"]

    run(main())


def test_a_cancelled_add_is_carried_out_once_its_commit_is_queued(echo, db):
    async def main():
        async with AsyncMemory(db, pool=echo) as memory:
            core = await memory._core()
            queued = asyncio.Event()
            submit, loop = core._writer.submit, asyncio.get_running_loop()

            def noting(operation):
                future = submit(operation)
                loop.call_soon(queued.set)
                return future

            core._writer.submit = noting
            with core.table.changing():
                adding = asyncio.ensure_future(memory.add("carried out", **ALICE))
                await queued.wait()
                adding.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await adding
        with Memory(db, pool=echo) as memory:
            assert texts(memory.get_all(filters=ALICE)) == ["carried out"]

    run(main())


def test_a_search_that_is_overtaken_by_the_close_says_so(db, tmp_path):
    gate = tmp_path / "gate"

    async def main(pool):
        memory = AsyncMemory(db, pool=pool)
        await memory.count()
        search = asyncio.ensure_future(memory.search("what?", filters=ALICE))
        while not pool.pending_tokens:
            await asyncio.sleep(0)
        await memory.close()
        gate.touch()
        with pytest.raises(PoolClosed):
            await search

    with EmbeddingPool(Gated(str(gate), str(tmp_path / "begun")), workers=1) as pool:
        run(main(pool))
