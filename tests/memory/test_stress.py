"""Threads and coroutines at once against an oracle: nothing lost, nothing twice, no deadlock.

Each of 64 threads and 200 coroutines has a user of its own, whose memories it knows
exactly; all of them also add the same texts to one scope that they share. Seconds
by default; ``MEMWORKER_STRESS_SECONDS=60`` makes it a minute (scripts/stress).
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter

from memworker import AsyncMemory, Memory
from memworker.memory import upkeep
from tests import PATIENCE_S
from tests.memory.helpers import all_rows

SECONDS = float(os.environ.get("MEMWORKER_STRESS_SECONDS", "3"))
THREADS = int(os.environ.get("MEMWORKER_STRESS_THREADS", "64"))
COROUTINES = int(os.environ.get("MEMWORKER_STRESS_COROUTINES", "200"))
# Of each caller, so that on a slow machine too something has come together.
DEEDS_AT_LEAST = 3
SHARED_TEXTS = 500


class Agent:
    """One caller with memories of its own: what it did, and so what must be there."""

    def __init__(self, name: str) -> None:
        self.name, self.scope = name, {"user_id": name}
        self.chance = random.Random(name)
        self.there: dict[str, str] = {}
        self.versions: Counter[str] = Counter()
        self.deeds = 0
        self.shared: list[tuple[str, str, str]] = []

    def goes_on(self, end):
        return time.monotonic() < end or self.deeds < DEEDS_AT_LEAST

    def next_deed(self):
        """Choose a method, its arguments, and how what it returns is noted."""
        self.deeds += 1
        kinds = ["add", "again", "batch", "shared", "update", "delete", "search", "list"]
        kind = self.chance.choices(kinds, [6, 2, 2, 4, 4, 2, 3, 1])[0]
        if not self.there and kind in ("again", "update", "delete", "search"):
            kind = "add"
        return getattr(self, f"_{kind}")()

    def _add(self):
        text = f"{self.name} says {self.deeds}"
        return "add", (text,), self.scope, lambda result: self._added(result, [text])

    def _again(self):
        memory_id = self.chance.choice(list(self.there))
        text = self.there[memory_id]

        def check(result):
            (record,) = result["results"]
            assert (record["id"], record["event"]) == (memory_id, "NONE")

        return "add", (text,), self.scope, check

    def _batch(self):
        texts = [f"{self.name} lists {self.deeds}.{part}" for part in range(5)]
        return "add_batch", ([*texts, "", texts[0]],), self.scope, self._batched

    def _batched(self, result):
        records = result["results"]
        assert records[5]["index"] == 5 and records[6]["id"] == records[0]["id"]
        self._added({"results": records[:5]}, [record["memory"] for record in records[:5]])

    def _added(self, result, texts):
        for record, text in zip(result["results"], texts, strict=True):
            assert (record["event"], record["memory"]) == ("ADD", text)
            assert record["id"] not in self.versions, "an id was given twice"
            self.there[record["id"]] = text
            self.versions[record["id"]] = 1

    def _shared(self):
        text = f"shared {self.chance.randrange(SHARED_TEXTS)}"

        def note(result):
            (record,) = result["results"]
            self.shared.append((text, record["id"], record["event"]))

        return "add", (text,), {"agent_id": "shared"}, note

    def _update(self):
        memory_id = self.chance.choice(list(self.there))
        text = f"{self.name} corrects {self.deeds}"

        def note(_):
            self.there[memory_id] = text
            self.versions[memory_id] += 1

        return "update", (memory_id, text), {}, note

    def _delete(self):
        memory_id = self.chance.choice(list(self.there))
        return "delete", (memory_id,), {}, lambda _: self.there.pop(memory_id)

    def _search(self):
        memory_id = self.chance.choice(list(self.there))
        text = self.there[memory_id]

        def check(result):
            ids = [record["id"] for record in result["results"]]
            assert set(ids) <= set(self.there) and len(ids) == len(set(ids))
            assert memory_id in ids

        return "search", (text,), {"filters": self.scope, "limit": 100_000}, check

    def _list(self):
        def check(result):
            found = {record["id"]: record["memory"] for record in result["results"]}
            assert found == self.there

        return "get_all", (), {"filters": self.scope, "limit": None}, check


def test_nothing_is_lost_and_nothing_is_there_twice(echo, db, monkeypatch):
    # Upkeep must do no harm either.
    monkeypatch.setattr(upkeep, "COMMITS_BETWEEN", 2)
    agents = [Agent(f"thread-{n}") for n in range(THREADS)]
    tasks = [Agent(f"task-{n}") for n in range(COROUTINES)]
    errors: list[BaseException] = []
    end = time.monotonic() + SECONDS
    with Memory(db, pool=echo) as memory:
        threads = [
            threading.Thread(target=_drive, args=(memory, agent, end, errors), daemon=True)
            for agent in agents
        ]
        threads.append(
            threading.Thread(target=_drive_all, args=(db, echo, tasks, end, errors), daemon=True)
        )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(1.0, end + PATIENCE_S + 10 * SECONDS - time.monotonic()))
            assert not thread.is_alive(), "a caller hangs"
        assert not errors, errors[0]
        _compare(memory, [*agents, *tasks])


def _drive(memory, agent, end, errors):
    try:
        while agent.goes_on(end) and not errors:
            method, given, named, note = agent.next_deed()
            note(getattr(memory, method)(*given, **named))
    except BaseException as error:
        errors.append(error)


def _drive_all(db, pool, agents, end, errors):
    async def drive(memory, agent):
        while agent.goes_on(end) and not errors:
            method, given, named, note = agent.next_deed()
            note(await getattr(memory, method)(*given, **named))

    async def main():
        # A Memory of its own: two writers on one table, as in two processes.
        async with AsyncMemory(db, pool=pool) as memory:
            await asyncio.gather(*(drive(memory, agent) for agent in agents))

    try:
        asyncio.run(main())
    except BaseException as error:
        errors.append(error)


def _compare(memory, agents):
    rows = all_rows(memory)
    live = {row["id"]: row["text"] for row in rows if row["superseded_at"] is None}
    wanted = {key: text for agent in agents for key, text in agent.there.items()}
    shared = [entry for agent in agents for entry in agent.shared]
    one_id = {text: memory_id for text, memory_id, _ in shared}
    assert {(text, memory_id) for text, memory_id, _ in shared} == set(one_id.items())
    assert sum(event == "ADD" for _, _, event in shared) == len(one_id)
    assert live == wanted | {memory_id: text for text, memory_id in one_id.items()}
    assert len(rows) == len({row["id"] for row in rows}), "a row is there twice"
    versions = Counter(row["id"].partition("@")[0] for row in rows)
    expected = sum((agent.versions for agent in agents), Counter(one_id.values()))
    assert versions == expected, "a version is missing or too many"
    assert memory.count() == len(live)
    assert all(agent.deeds >= DEEDS_AT_LEAST for agent in agents)
