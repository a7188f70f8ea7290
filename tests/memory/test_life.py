"""Opening, closing, forgetting, forking, and two processes on one table."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading

import psutil
import pytest

from memworker import EmbeddingPool, Memory
from memworker.errors import (
    PoolClosed,
    PoolForked,
    StoreError,
    StoreUnwritable,
    TableMismatch,
    UsageError,
)
from memworker.memory import upkeep
from memworker.pool import EchoLoader
from tests import PATIENCE_S
from tests.memory.helpers import ALICE, all_texts, one
from tests.memory.test_group import add, held, queued


def script(code, *arguments):
    """Run a script in a process of its own; what it prints as JSON."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


def test_a_memory_outlives_its_process(db, echo):
    code = """
import json, sys
from memworker import Memory
with Memory(sys.argv[1], model="echo", workers=1) as memory:
    print(json.dumps(memory.add("x", user_id="alice")["results"][0]["id"]))
"""
    memory_id = script(code, db)
    with Memory(db, pool=echo) as memory:
        assert memory.get(memory_id)["memory"] == "x"


def test_a_given_pool_is_left_open_and_an_own_one_is_closed(db, echo):
    Memory(db, pool=echo).close()
    assert echo.embed(["still there"]).shape == (1, echo.dim)
    with Memory(db, model="echo", workers=1) as memory:
        memory.add("x", **ALICE)
        pids = memory._core.pool.worker_pids()
        assert all(map(psutil.pid_exists, pids)) and pids
    assert not any(map(psutil.pid_exists, pids))


def test_a_table_of_another_model_is_refused_before_a_worker_starts(db, echo):
    Memory(db, pool=echo).close()
    before = psutil.Process().children(recursive=True)
    with pytest.raises(TableMismatch, match="384"):
        Memory(db, model=EchoLoader(dim=8))
    with EmbeddingPool(EchoLoader(dim=8), workers=1) as other:
        with pytest.raises(TableMismatch):
            Memory(db, pool=other)
        Memory(db, pool=other, table="others").close()
    assert psutil.Process().children(recursive=True) == before


def test_a_bad_place_is_refused(tmp_path, echo):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnwritable):
        Memory(tmp_path / "file" / "db", pool=echo)
    with pytest.raises(UsageError):
        Memory("hdfs://bucket", pool=echo)


def test_closing_twice_is_fine_and_using_it_then_is_said_so(db, echo):
    memory = Memory(db, pool=echo)
    memory_id = one(memory.add("x", **ALICE))["id"]
    memory.close()
    memory.close()
    deeds = [
        lambda: memory.add("y", **ALICE),
        lambda: memory.add_batch(["y"], **ALICE),
        lambda: memory.search("x", filters=ALICE),
        lambda: memory.get(memory_id),
        lambda: memory.get_all(filters=ALICE),
        lambda: memory.update(memory_id, "y"),
        lambda: memory.delete(memory_id),
        lambda: memory.delete_all(**ALICE),
        lambda: memory.history(memory_id),
        memory.count,
        memory.reset,
    ]
    for deed in deeds:
        with pytest.raises(PoolClosed, match="this Memory is closed"):
            deed()


def test_closing_commits_what_was_accepted(db, echo):
    memory = Memory(db, pool=echo)
    with held(memory):
        futures = [add(memory, f"text {number}") for number in range(20)]
        in_queue = queued(memory, 1)
        adding = threading.Thread(target=memory.add, args=("in flight",), kwargs=ALICE)
        adding.start()
        assert in_queue.wait(PATIENCE_S)
        closing = threading.Thread(target=memory.close)
        closing.start()
    closing.join(PATIENCE_S)
    adding.join(PATIENCE_S)
    assert all(future.result()[0][0] == "ADD" for future in futures)
    with Memory(db, pool=echo) as again:
        assert all_texts(again, **ALICE) == sorted([f"text {n}" for n in range(20)] + ["in flight"])


def test_a_forgotten_memory_ends_its_thread_and_its_pool(db):
    memory = Memory(db, model="echo", workers=1)
    memory.add("x", **ALICE)
    thread, pids = memory._core._writer._thread, memory._core.pool.worker_pids()
    del memory
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and not any(map(psutil.pid_exists, pids))


def test_forgotten_at_the_interpreters_end_it_neither_hangs_nor_loses(db, echo):
    code = """
import json, sys, threading
from memworker import Memory
memory = Memory(sys.argv[1], model="echo", workers=1)
said, enough = [], threading.Event()
def adding(thread):
    for number in range(10**9):
        said.append(memory.add(f"{thread}-{number}", user_id="alice")["results"][0]["memory"])
        if len(said) > 20:
            enough.set()
for thread in range(4):
    threading.Thread(target=adding, args=(thread,), daemon=True).start()
enough.wait()
print(json.dumps(list(said)))
"""
    command = [sys.executable, "-c", code, str(db)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    with Memory(db, pool=echo) as memory:
        assert len(said) > 20 and set(said) <= set(all_texts(memory, **ALICE))


def test_a_forked_child_is_told_and_the_parent_is_unharmed(db, echo):
    with Memory(db, pool=echo) as memory:
        memory_id = one(memory.add("x", **ALICE))["id"]
        reading, writing = os.pipe()
        # The lock that a thread holds at the fork stays locked in the child for ever.
        with memory._core._writer._wake, memory._core._idle:
            pid = os.fork()
            if pid == 0:
                os.write(writing, _in_the_child(memory, memory_id))
                os._exit(0)
        os.close(writing)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.read(reading, 1000) == b"PoolForked " * 6 + b"closed"
        os.close(reading)
        assert one(memory.add("y", **ALICE))["event"] == "ADD"


def _in_the_child(memory, memory_id):
    deeds = [
        lambda: memory.add("z", **ALICE),
        lambda: memory.update(memory_id, "z"),
        lambda: memory.search("x", filters=ALICE),
        lambda: memory.delete(memory_id),
        memory.count,
        memory.reset,
    ]
    said = b""
    for deed in deeds:
        try:
            deed()
        except PoolForked:
            said += b"PoolForked "
    memory.close()
    return said + b"closed"


# Each of two processes adds the same texts, and others of its own, and updates and deletes.
TWIN = """
import json, random, sys, threading
from memworker import Memory
from memworker.errors import MemoryNotFound
db, name = sys.argv[1:]
chance, said, mine = random.Random(name), [], {}
with Memory(db, model="echo", workers=1) as memory:
    def common(part):
        for number in range(part, 60, 2):
            said.append(memory.add(f"common {number}", user_id="alice")["results"][0]["event"])
    threads = [threading.Thread(target=common, args=(part,)) for part in (0, 1)]
    for thread in threads:
        thread.start()
    for number in range(30):
        record = memory.add(f"{name} {number}", user_id=name)["results"][0]
        mine[record["id"]] = record["memory"]
        victim = chance.choice(list(mine))
        if chance.random() < 0.3:
            memory.delete(victim)
            del mine[victim]
        elif chance.random() < 0.5:
            memory.update(victim, mine[victim] + "!")
            mine[victim] += "!"
    for thread in threads:
        thread.join()
    print(json.dumps([said.count("ADD"), sorted(mine.values())]))
"""


def test_two_processes_share_a_table_and_nothing_is_there_twice(db, echo):
    twins = [
        subprocess.Popen([sys.executable, "-c", TWIN, str(db), name], stdout=subprocess.PIPE)
        for name in ("castor", "pollux")
    ]
    outcomes = [json.loads(twin.communicate(timeout=PATIENCE_S)[0]) for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0]
    with Memory(db, pool=echo) as memory:
        assert sum(added for added, _ in outcomes) == 60
        assert all_texts(memory, **ALICE) == sorted(f"common {number}" for number in range(60))
        for name, (_, mine) in zip(("castor", "pollux"), outcomes, strict=True):
            assert all_texts(memory, user_id=name) == mine


def test_upkeep_joins_the_files_of_many_commits(db, echo, monkeypatch):
    monkeypatch.setattr(upkeep, "_PAUSE_S", 0.01)
    with Memory(db, pool=echo) as memory:
        core, tended = memory._core, threading.Event()
        tend = core.table.maintenance.tend

        def noting():
            if tend().step is not None:
                tended.set()

        core.table.maintenance.tend = noting
        for number in range(upkeep.COMMITS_BETWEEN * 5):
            memory.add(f"text {number}", **ALICE)
        assert tended.wait(PATIENCE_S)
        assert len(all_texts(memory, **ALICE)) == upkeep.COMMITS_BETWEEN * 5
        assert core.table.maintenance.needs().small_fragments < upkeep.COMMITS_BETWEEN * 5
    assert not core._upkeep._thread.is_alive()


def test_a_failure_of_upkeep_is_logged_and_reaches_nobody(db, echo, monkeypatch, caplog):
    with Memory(db, pool=echo) as memory:
        failed = threading.Event()

        def failing():
            failed.set()
            raise StoreError("on purpose")

        monkeypatch.setattr(memory._core.table.maintenance, "due", failing)
        for number in range(upkeep.COMMITS_BETWEEN):
            memory.add(f"text {number}", **ALICE)
        assert failed.wait(PATIENCE_S)
        assert one(memory.add("one more", **ALICE))["event"] == "ADD"
    assert "on purpose" in caplog.text


def test_a_thread_for_upkeep_that_cannot_be_had_costs_no_commit(db, echo, monkeypatch, caplog):
    begin = threading.Thread.start

    def refusing(thread):
        if thread.name == "memworker-upkeep":
            raise RuntimeError("can't start new thread")
        begin(thread)

    with Memory(db, pool=echo) as memory:
        monkeypatch.setattr(threading.Thread, "start", refusing)
        for number in range(upkeep.COMMITS_BETWEEN + 2):
            assert one(memory.add(f"text {number}", **ALICE))["event"] == "ADD"
        monkeypatch.undo()
        memory.add("one more", **ALICE)
    assert "can't start new thread" in caplog.text
    assert memory._core._upkeep._thread is not None


def test_closing_waits_for_what_is_being_embedded(db, echo):
    memory = Memory(db, pool=echo)
    embedding, closing = threading.Event(), threading.Event()
    embed, shut = memory._embed, memory._core._admission.close

    def embed_while_closing(*given):
        embedding.set()
        assert closing.wait(PATIENCE_S)
        return embed(*given)

    def note_closing(error):
        shut(error)
        closing.set()

    memory._embed, memory._core._admission.close = embed_while_closing, note_closing
    adding = threading.Thread(target=memory.add, args=("x",), kwargs=ALICE)
    adding.start()
    assert embedding.wait(PATIENCE_S)
    memory.close()
    adding.join(PATIENCE_S)
    with Memory(db, pool=echo) as again:
        assert all_texts(again, **ALICE) == ["x"]
