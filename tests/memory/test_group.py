"""Operations that meet in one commit come out as if each had been alone."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from memworker import Memory
from memworker.errors import MemoryNotFound, StoreError
from memworker.memory.drafts import Terms, of_many
from memworker.memory.group import Delete, EraseOne, Sweep, Update, adding
from memworker.memory.scope import Scope
from tests import PATIENCE_S
from tests.memory.helpers import ALICE, all_texts, one

SCOPE = Scope("alice")
TERMS = Terms(SCOPE, None, "skip", 1 << 20)


@contextmanager
def held(memory):
    """Keep the writer from committing, so that what is written meanwhile gathers."""
    core = memory._core
    with core.table.changing():
        # It takes this one alone, and then waits for the table.
        first = core.write(Sweep({"id": "nobody"}, erase=True))
        yield
        assert not first.done()


def queued(memory, operations):
    """Give an event that is set when so many more operations wait for their commit."""
    return queued_by(memory._core._writer, operations)


def queued_by(writer, operations):
    event, left = threading.Event(), list(range(operations))
    submit = writer.submit

    def counting(operation):
        future = submit(operation)
        left.pop()
        if not left:
            event.set()
        return future

    writer.submit = counting
    return event


def add(memory, *texts, on_duplicate="skip", metadata=None):
    core = memory._core
    embedded = core.pool.submit_rows(list(texts)).result()
    terms = replace(TERMS, on_duplicate=on_duplicate)
    _, operation = adding(of_many(list(texts), metadata, terms), embedded)
    return core.write(operation)


def update(memory, memory_id, text):
    core = memory._core
    embedded = core.pool.submit_rows([text]).result()
    return core.write(Update(memory_id, None, False, text, embedded.vectors[0]))


def delete(memory, memory_id):
    return memory._core.write(Delete(memory_id))


def events(future):
    return [(event, row.text) for event, row in future.result(PATIENCE_S)]


def test_two_adds_of_one_memory_in_a_group_leave_one(memory):
    with held(memory):
        version = memory._core.table.version
        futures = [add(memory, "x", "y"), add(memory, "y", "z", "z")]
    assert events(futures[0]) == [("ADD", "x"), ("ADD", "y")]
    assert events(futures[1]) == [("NONE", "y"), ("ADD", "z"), ("NONE", "z")]
    assert futures[0].result()[1][1].id == futures[1].result()[0][1].id
    assert all_texts(memory, **ALICE) == ["x", "y", "z"]
    # The first, held back, found nothing to erase, which is a version to LanceDB all the same.
    assert memory._core.table.version <= version + 2


def test_add_update_delete_of_one_memory_in_a_group(memory):
    memory_id = one(memory.add("A", **ALICE))["id"]
    with held(memory):
        futures = [
            update(memory, memory_id, "B"),
            add(memory, "A"),
            add(memory, "B"),
            delete(memory, memory_id),
            add(memory, "B"),
            update(memory, memory_id, "C"),
        ]
    assert events(futures[1]) == [("ADD", "A")]
    assert events(futures[2]) == [("NONE", "B")]
    assert events(futures[4]) == [("ADD", "B")]
    with pytest.raises(MemoryNotFound):
        futures[5].result(PATIENCE_S)
    assert all_texts(memory, **ALICE) == ["A", "B"]
    told = [(event["event"], event["new_memory"]) for event in memory.history(memory_id)]
    assert told == [("ADD", "A"), ("UPDATE", "B"), ("DELETE", None)]


def test_a_duplicate_that_updates_takes_what_the_group_has_made_of_it(memory):
    with held(memory):
        futures = [
            add(memory, "x", metadata={"n": 1}),
            add(memory, "x", metadata={"n": 2}, on_duplicate="update"),
            add(memory, "x", on_duplicate="update"),
        ]
    (event, row) = futures[2].result(PATIENCE_S)[0]
    assert event == "UPDATE" and row.metadata == {"n": 2}
    assert [e["event"] for e in memory.history(row.id)] == ["ADD", "UPDATE", "UPDATE"]
    assert memory.count() == 1


def test_what_concerns_all_rows_keeps_its_place_in_the_order(memory):
    with held(memory):
        futures = [add(memory, "x"), memory._core.write(Sweep(SCOPE.named(), erase=False))]
        futures += [add(memory, "x"), add(memory, "y")]
    assert futures[1].result(PATIENCE_S) == 1 and events(futures[3]) == [("ADD", "y")]
    assert all_texts(memory, **ALICE) == ["x", "y"]
    assert futures[0].result()[0][1].id != futures[2].result()[0][1].id
    gone = futures[0].result()[0][1].id
    assert memory.history(gone)[-1]["event"] == "DELETE"
    memory._core.write(EraseOne(gone)).result()
    assert memory.history(gone) == []


def test_a_commit_that_fails_reaches_all_of_its_group_and_no_one_else(memory):
    opened = memory._core.table._writes.table
    identity = opened.identity
    with held(memory):
        # What the store asks before each commit: is this the table that was opened?
        object.__setattr__(opened, "identity", "of a table that was dropped")
        futures = [add(memory, "x"), add(memory, "y")]
    for future in futures:
        with pytest.raises(StoreError, match="dropped"):
            future.result(PATIENCE_S)
    object.__setattr__(opened, "identity", identity)
    assert memory.count() == 0
    assert one(memory.add("x", **ALICE))["event"] == "ADD"


@pytest.mark.parametrize("seed", range(6))
def test_a_group_comes_out_as_one_by_one(echo, tmp_path, seed):
    """The same random operations, all in one group and each alone, leave the same behind."""
    outcomes = []
    for together in (True, False):
        with Memory(tmp_path / str(together), pool=echo) as memory:
            outcomes.append(_play(memory, random.Random(seed), together=together))
    assert outcomes[0] == outcomes[1]


def _play(memory, chance, *, together):
    ids = [one(memory.add(text, **ALICE))["id"] for text in "ABC"]
    numbers = {memory_id: number for number, memory_id in enumerate(ids)}
    futures = []
    gate = held(memory) if together else _nothing()
    with gate:
        for _ in range(60):
            futures.append(_one_deed(memory, chance, ids))
            if not together:
                futures[-1].exception(PATIENCE_S)
    said = [_said(future, numbers) for future in futures]
    histories = [
        [(e["event"], e["old_memory"], e["new_memory"]) for e in memory.history(memory_id)]
        for memory_id in numbers
    ]
    return said, histories, all_texts(memory, **ALICE)


def _one_deed(memory, chance, ids):
    text, memory_id = chance.choice("ABCDEF"), chance.choice(ids)
    deed = chance.choice(["skip", "update", "allow", "change", "delete"])
    if deed == "change":
        return update(memory, memory_id, text)
    if deed == "delete":
        return delete(memory, memory_id)
    return add(memory, text, chance.choice("ABCDEF"), on_duplicate=deed)


def _said(future, numbers):
    error = future.exception(PATIENCE_S)
    if error is not None:
        return type(error).__name__
    result = future.result()
    if not isinstance(result, list):
        return None
    return [(e, row.text, numbers.setdefault(row.id, len(numbers))) for e, row in result]


@contextmanager
def _nothing():
    yield


def test_concurrent_adds_of_the_same_memories_leave_one_of_each(memory):
    events = []

    def adding_all(number):
        for text in range(10):
            events.append(one(memory.add(f"text {text}", **ALICE, metadata={"by": number})))

    threads = [threading.Thread(target=adding_all, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sum(event["event"] == "ADD" for event in events) == 10 and len(events) == 160
    assert all_texts(memory, **ALICE) == sorted(f"text {text}" for text in range(10))


def test_adds_of_many_callers_share_commits(memory):
    version = memory._core.table.version
    threads = [
        threading.Thread(target=memory.add, args=(f"text {n}",), kwargs=ALICE) for n in range(64)
    ]
    with held(memory):
        all_queued = queued(memory, 64)
        for thread in threads:
            thread.start()
        assert all_queued.wait(PATIENCE_S)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert memory.count() == 64
    assert memory._core.table.version <= version + 2
