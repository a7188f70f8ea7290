"""Adding looks nothing up that cannot be there, and never misses what is."""

from __future__ import annotations

import random

from memworker import Memory
from memworker.store import Change
from tests.memory.helpers import ALICE, all_texts, one


def look_ups(monkeypatch):
    """Collect which keys are looked up from now on."""
    asked, find = [], Change.find

    def noting(change, column, values, **given):
        asked.extend(values)
        return find(change, column, values, **given)

    monkeypatch.setattr(Change, "find", noting)
    return asked


def test_a_lone_process_soon_looks_nothing_up(memory, monkeypatch):
    asked = look_ups(monkeypatch)
    for number in range(10):
        memory.add(f"text {number}", **ALICE)
    assert len(asked) <= 1
    asked.clear()
    assert one(memory.add("text 3", **ALICE))["event"] == "NONE" and len(asked) == 1
    memory.delete_all(**ALICE)
    memory._core.table.optimize()
    asked.clear()
    for number in range(20):
        memory.add(f"text {number}", **ALICE)
    # The first after the optimise, and those whose deleted rows are there still.
    assert len(asked) <= 11 and memory.count() == 20


def test_turns_of_two_writers_and_upkeep_never_hide_a_memory(db, echo):
    chance = random.Random(5)
    with Memory(db, pool=echo) as one_writer, Memory(db, pool=echo) as other:
        there = {}
        for _ in range(120):
            memory, text = chance.choice([one_writer, other]), f"text {chance.randrange(25)}"
            deed = chance.choice(["add"] * 6 + ["update", "delete", "optimize", "erase"])
            if deed == "add":
                record = one(memory.add(text, **ALICE))
                assert record["event"] == ("NONE" if text in there else "ADD")
                assert there.setdefault(text, record["id"]) == record["id"]
            elif deed == "optimize":
                memory._core.table.optimize()
            elif there:
                text = chance.choice(list(there))
                memory_id = there.pop(text)
                if deed == "update":
                    new = f"text {len(there)} {memory_id}"
                    memory.update(memory_id, new)
                    there[new] = memory_id
                else:
                    memory.delete(memory_id, erase=deed == "erase")
        assert all_texts(one_writer, **ALICE) == sorted(there)
