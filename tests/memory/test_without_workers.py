"""A memory has no worker process until it must embed, and gets them once however it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import pytest

from memworker import AsyncEmbeddingPool, AsyncMemory, EmbeddingPool, Memory, Table
from memworker.errors import (
    MemoryNotFound,
    PoolClosed,
    TableMismatch,
    TableNotFound,
    UnknownModel,
    UsageError,
    WorkerStartFailed,
)
from memworker.memory import exported, import_lines
from memworker.pool import EchoLoader
from tests import PATIENCE_S
from tests.memory.helpers import ALICE, all_texts, one, texts


@dataclass(frozen=True)
class Marking:
    """An echo encoder whose workers leave a file with their pid; each fails while `obstacle` is."""

    marks: str
    dim: int = 384
    obstacle: str = ""
    begun: str = ""

    def __call__(self):
        if self.begun:
            with open(self.begun, "a"), open(f"{self.begun}.go") as gate:
                gate.read()
        if self.obstacle and os.path.exists(self.obstacle):
            raise RuntimeError("something is in the way")
        open(os.path.join(self.marks, str(os.getpid())), "w").close()
        return EchoLoader(self.dim)()


@pytest.fixture
def marks(tmp_path):
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def begun(marks):
    """How many workers there ever were, and how many child processes there are."""
    return len(os.listdir(marks)), len(psutil.Process().children(recursive=True))


@pytest.fixture
def filled(db, marks):
    """A table with two memories, and the id of the one that never changed."""
    return fill(db, Marking(str(marks)))


def fill(db, model):
    with Memory(db, model=model, workers=1) as memory:
        memory.update(one(memory.add("I like tea", **ALICE))["id"], "I like green tea")
        return one(memory.add("I like milk", **ALICE))["id"]


def needing_no_vector(memory, memory_id):
    """Call all that needs no vector."""
    assert memory.count() == 2 and memory.get(memory_id)["memory"] == "I like milk"
    assert texts(memory.get_all(filters=ALICE)) == ["I like milk", "I like green tea"]
    assert len(memory.search("tea", filters=ALICE, mode="text")["results"]) == 1
    assert [event["event"] for event in memory.history(memory_id)] == ["ADD"]
    memory.update(memory_id, metadata={"n": 1}, merge=True)
    assert memory.get(memory_id)["metadata"]["n"] == 1
    memory.delete(memory_id)
    with pytest.raises(MemoryNotFound):
        memory.delete(memory_id)
    assert memory.delete_batch([memory_id])["results"][0]["index"] == 0
    memory.delete(memory_id, erase=True)
    assert memory.delete_all(**ALICE)["deleted"] == 1
    memory.reset()


def test_what_needs_no_vector_starts_no_worker(db, filled, marks):
    before = begun(marks)
    with Memory(db, model=Marking(str(marks)), workers=2) as memory:
        needing_no_vector(memory, filled)
        assert memory.add([], **ALICE) == {"results": []} == memory.add_batch([], **ALICE)
        assert begun(marks) == before
        assert one(memory.add("x", **ALICE))["event"] == "ADD"
        assert begun(marks) == (before[0] + 2, before[1] + 2)
        assert one(memory.search("x", filters=ALICE))["memory"] == "x"
    assert begun(marks) == (before[0] + 2, before[1])


def test_coroutines_start_none_either(db, filled, marks):
    before = begun(marks)

    async def main():
        async with AsyncMemory(db, model=Marking(str(marks)), workers=1) as memory:
            assert await memory.count() == 2
            assert len(texts(await memory.get_all(filters=ALICE))) == 2
            assert await memory.get(filled) and await memory.history(filled)
            await memory.update(filled, metadata={"n": 1})
            assert (await memory.get(filled))["metadata"] == {"n": 1}
            done = await memory.delete_batch([filled, "nobody"])
            assert [record.get("event") for record in done["results"]] == ["DELETE", None]
            assert (await memory.delete_batch([])) == {"results": []}
            assert (await memory.delete_all(**ALICE))["deleted"] == 1
            await memory.search("tea", filters=ALICE, mode="text")
            await memory.reset()
            assert begun(marks) == before
            await asyncio.gather(*(memory.add(f"text {n}", **ALICE) for n in range(50)))
            assert begun(marks) == (before[0] + 1, before[1] + 1)
            return await memory.count()

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE_S)) == 50
    assert begun(marks) == (before[0] + 1, before[1])


def test_an_export_and_an_import_of_what_is_there_start_none(db, filled, marks):
    lines = [line.encode() for line in exported(Table.open(db, "memories"))]
    before = begun(marks)
    with Memory(db, model=Marking(str(marks)), workers=1) as memory:
        table = Table.open(db, "memories")
        done = import_lines(table, memory._core.pool, [*lines, b"bad"], lambda flaw: None)
        assert (done.read, done.skipped, done.refused) == (4, 3, 1) and begun(marks) == before
        new = json.dumps({"id": "new", "memory": "n", **ALICE}).encode()
        assert import_lines(table, memory._core.pool, [*lines, new], pytest.fail).written == 1
        assert begun(marks)[0] == before[0] + 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_given_pool_is_started_by_the_first_text_and_left_open(db, filled, marks, wrapped):
    before = begun(marks)
    pool = EmbeddingPool(Marking(str(marks)), workers=1)

    async def main():
        given = AsyncEmbeddingPool(pool=pool) if wrapped else pool
        async with AsyncMemory(db, pool=given) as memory:
            assert await memory.count() == 2 and begun(marks) == before
            await memory.add("x", **ALICE)

    with Memory(db, pool=pool) as memory:
        assert memory.count() == 2
    assert begun(marks) == before
    asyncio.run(main())
    assert pool.started and pool.embed(["still there"]).shape == (1, 384)
    pool.close()


def test_threads_that_are_first_together_start_one_set_of_workers(db, marks):
    before = begun(marks)
    with Memory(db, model=Marking(str(marks)), workers=2) as memory:
        together = threading.Barrier(24)

        def first(n):
            together.wait(PATIENCE_S)
            if n % 3 == 0:
                return memory.search("x", filters=ALICE)
            return memory.add(f"text {n}", **ALICE)

        with ThreadPoolExecutor(24) as threads:
            assert len(list(threads.map(first, range(24)))) == 24
        assert memory.count() == 16
        assert begun(marks) == (before[0] + 2, before[1] + 2)


def test_a_start_that_fails_is_told_by_the_call_and_tried_again_by_the_next(db, marks, tmp_path):
    obstacle = tmp_path / "obstacle"
    obstacle.touch()
    before = begun(marks)[1]
    with Memory(db, model=Marking(str(marks), obstacle=str(obstacle)), workers=1) as memory:
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(memory.add, f"text {n}", **ALICE) for n in range(4)]
            for future in asked:
                with pytest.raises(WorkerStartFailed, match="something is in the way"):
                    future.result(PATIENCE_S)
        with pytest.raises(WorkerStartFailed):
            memory.search("x", filters=ALICE)
        # What needs no worker goes on meanwhile.
        assert memory.count() == 0 and memory.get_all(filters=ALICE) == {"results": []}
        obstacle.unlink()
        assert one(memory.add("x", **ALICE))["event"] == "ADD"
    assert begun(marks) == (1, before)


def test_one_that_never_embedded_ends_at_once(db, filled, marks):
    before = begun(marks)
    memory = Memory(db, model=Marking(str(marks)), workers=1)
    memory.close()
    memory.close()
    for deed in (memory.count, lambda: memory.add("x", **ALICE)):
        with pytest.raises(PoolClosed, match="this Memory is closed"):
            deed()
    opened = Memory.open(db)
    opened.close()
    with pytest.raises(PoolClosed, match="this Memory is closed"):
        opened.add("x", **ALICE)
    assert begun(marks) == before


def test_closing_ends_a_start_under_way(db, marks, tmp_path):
    begins, gate = tmp_path / "begins", tmp_path / "begins.go"
    os.mkfifo(gate)
    memory = Memory(db, model=Marking(str(marks), begun=str(begins)), workers=1)
    searching = ThreadPoolExecutor(1).submit(memory.search, "x", filters=ALICE)
    until = time.monotonic() + PATIENCE_S
    while not begins.exists() and time.monotonic() < until:
        time.sleep(0.01)
    memory.close()
    with pytest.raises(PoolClosed):
        searching.result(PATIENCE_S)
    assert begun(marks)[0] == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "nobody/knows-this"}, UnknownModel),
        ({"model": "echo", "workers": 0}, UsageError),
        ({"model": "all-MiniLM-L6-v2", "precision": "int3"}, UsageError),
        ({"model": EchoLoader(dim=8)}, TableMismatch),
        ({"pool": "a pool"}, UsageError),
        ({"db": "hdfs://bucket"}, UsageError),
    ],
)
def test_what_is_wrong_with_the_options_is_told_when_it_is_made(db, filled, options, error):
    before = psutil.Process().children(recursive=True)
    with pytest.raises(error):
        Memory(**{"db": db} | options)
    assert psutil.Process().children(recursive=True) == before

    async def main():
        async with AsyncMemory(**{"db": db} | options):
            pass

    with pytest.raises(error):
        asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


# ── open: memories that are there ──


def test_open_takes_the_tables_own_model(db):
    filled = fill(db, "echo")
    with Memory.open(db) as memory:
        assert one(memory.add("new", **ALICE))["event"] == "ADD"
        assert one(memory.search("new", filters=ALICE, limit=1))["memory"] == "new"
        assert all_texts(memory, **ALICE) == ["I like green tea", "I like milk", "new"]

    async def main():
        async with AsyncMemory.open(db, workers=1) as memory:
            await memory.add("newer", **ALICE)
            await memory.update(filled, "I like cream")
            return texts(await memory.search("newer", filters=ALICE, limit=1))

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE_S)) == ["newer"]


def test_open_makes_nothing(db):
    with pytest.raises(TableNotFound):
        Memory.open(db)
    assert not db.exists()


def test_a_model_that_cannot_be_had_hinders_only_what_embeds(db, marks):
    odd = Marking(str(marks))
    added = fill(db, odd)
    with Memory.open(db) as memory:
        for _ in range(2):
            with pytest.raises(UnknownModel, match="give its directory"):
                memory.add("x", **ALICE)
        needing_no_vector(memory, added)
    with Memory.open(db, model=odd, workers=1) as memory:
        assert one(memory.add("x", **ALICE))["event"] == "ADD"
    with Memory.open(db, model=EchoLoader(dim=8)) as memory, pytest.raises(TableMismatch):
        memory.add("y", **ALICE)


def test_a_forgotten_one_that_never_embedded_holds_up_no_end(db):
    fill(db, "echo")
    code = (
        "import resource, sys\n"
        "from memworker import Memory\n"
        "memory = Memory(sys.argv[1], model='echo')\n"
        "print(memory.count(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(db)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 0\n", "")


# ── many deleted at once ──


def test_deleting_many_tells_of_each(memory):
    ids = [record["id"] for record in memory.add_batch(["a", "b", "c"], **ALICE)["results"]]
    version = memory._core.table.version
    told = memory.delete_batch([ids[0], "nobody", 3, "", ids[2]])["results"]
    assert told[0] == {"id": ids[0], "event": "DELETE"} and told[4]["id"] == ids[2]
    assert [record.get("index") for record in told] == [None, 1, 2, 3, None]
    assert "'nobody'" in told[1]["error"] and "is a str, not 3" in told[2]["error"]
    assert texts(memory.get_all(filters=ALICE)) == ["b"]
    # What the writer took before the others came, and the others.
    assert memory._core.table.version - version <= 2
    assert [e["event"] for e in memory.history(ids[0])] == ["ADD", "DELETE"]
    assert memory.delete_batch(iter([ids[0]]), erase=True)["results"][0]["event"] == "DELETE"
    assert memory.history(ids[0]) == []
    with pytest.raises(UsageError, match="a list of ids"):
        memory.delete_batch(ids[1])


def test_threads_that_are_first_to_ask_an_opened_one_share_a_pool(db):
    fill(db, "echo")
    children = len(psutil.Process().children(recursive=True))
    with Memory.open(db, workers=1) as memory:
        together = threading.Barrier(12)

        def first(n):
            together.wait(PATIENCE_S)
            return memory.add(f"text {n}", **ALICE)

        with ThreadPoolExecutor(12) as threads:
            assert len(list(threads.map(first, range(12)))) == 12
        assert len(psutil.Process().children(recursive=True)) == children + 1
    assert len(psutil.Process().children(recursive=True)) == children


def test_a_first_add_that_is_cancelled_leaves_the_start_to_the_others(db, marks, tmp_path):
    begins, gate = tmp_path / "begins", tmp_path / "begins.go"
    os.mkfifo(gate)

    async def main():
        model = Marking(str(marks), begun=str(begins))
        async with AsyncMemory(db, model=model, workers=1) as memory:
            gone = asyncio.create_task(memory.add("gone", **ALICE))
            stays = asyncio.create_task(memory.add("stays", **ALICE))
            while not begins.exists():
                await asyncio.sleep(0.01)
            gone.cancel()
            # What needs no worker does not wait for the start.
            assert await memory.count() == 0 and not stays.done()
            with open(gate, "w"):
                pass
            assert one(await stays)["event"] == "ADD"
            assert gone.cancelled() and await memory.count() == 1

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
