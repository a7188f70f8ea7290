"""The memory layer's part of a soak: threads with users of their own, in a process of its own.

A user comes, is told and asked things, and goes: then all of it is erased, so that the
number of rows is bounded and so should be the bytes on the disk. Each thread knows
exactly what its users' memories are, and holds every answer against that. Started by
`bench.processes.Contestant`; every line on stdin asks for what happened since the last.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import open_answers
from bench.soak_window import Window
from bench.texts import read_texts

if TYPE_CHECKING:
    from memworker import Memory

THREADS = 8
ROWS_A_USER = 100
SEARCH_LIMIT = 10
_BATCH = 8
# How often each is done; once a user is full it goes, and another comes.
DEEDS = {
    **{"add": 30, "add_batch": 3, "add again": 5, "update": 10, "delete": 4, "erase": 4},
    **{"search vector": 18, "search text": 6, "search hybrid": 6, "get": 8, "list": 3},
    **{"count": 3, "history": 4},
}


@dataclass(frozen=True, slots=True)
class MemoryLoad:
    """What is opened, how many rows there are at a time, and how fast it goes."""

    db: str
    scratch: str
    model: str
    rows: int
    per_second: float
    workers: int | None = None

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


@dataclass(slots=True)
class User:
    """One whose memories are known exactly: text by id, and how often each was changed."""

    name: str
    full: int
    there: dict[str, str] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    told: int = 0

    @property
    def scope(self) -> dict[str, str]:
        return {"user_id": self.name}


class Agent:
    """One thread's users, and what it does with them."""

    def __init__(self, memory: Memory, number: int, users: int, window: Window) -> None:
        self._memory, self._number, self._window = memory, number, window
        self._chance = random.Random(number)
        self._texts = read_texts()
        self._made = 0
        self.users = [self._new() for _ in range(users)]

    def fill(self) -> None:
        """Bring each user to another point of its life, so that they do not all go at once."""
        for place, user in enumerate(self.users):
            while len(user.there) < user.full * place / len(self.users):
                self._do("add_batch", user)

    def deed(self) -> None:
        """Do one thing."""
        place = self._chance.randrange(len(self.users))
        user = self.users[place]
        if user.told >= user.full:
            self._go(user)
            self.users[place] = self._new()
            return
        kind = self._chance.choices(list(DEEDS), list(DEEDS.values()))[0]
        self._do(kind if user.there else "add", user)

    def wrong(self, said: str) -> None:
        """Note that an answer was wrong."""
        self._window.complain("wrong answers", said)

    def check_all(self) -> int:
        """Hold every user's memories against the table; gives how many there are."""
        for user in self.users:
            self._list(user)
        return sum(len(user.there) for user in self.users)

    def _do(self, kind: str, user: User) -> None:
        name, _, mode = kind.partition(" ")
        if name == "search":
            self._search(user, mode)
        else:
            deeds: dict[str, Callable[[User], None]] = {
                **{"add": self._add, "add_batch": self._add_batch, "add again": self._again},
                **{"update": self._update, "delete": self._delete, "erase": self._erase},
                **{"get": self._get, "list": self._list, "count": self._count},
                "history": self._history,
            }
            deeds[kind](user)

    def _new(self) -> User:
        self._made += 1
        return User(f"user-{self._number}-{self._made}", self._chance.randrange(1, 2 * ROWS_A_USER))

    def _go(self, user: User) -> None:
        with self._window.timed("delete_all"):
            self._memory.delete_all(**user.scope, erase=True)
        user.there.clear()
        self._list(user)
        for memory_id in [*user.changes][:2]:
            if self._memory.history(memory_id):
                self.wrong(f"{memory_id} has a history after it was erased")

    def _text(self, user: User) -> str:
        user.told += 1
        said = self._chance.choice(self._texts)
        return f"{said} ({user.name.replace('-', 'x')}x{user.told})"

    def _any(self, user: User) -> str:
        return self._chance.choice(list(user.there))

    def _add(self, user: User) -> None:
        text = self._text(user)
        with self._window.timed("add"):
            results = self._memory.add(text, **user.scope)["results"]
        self._added(user, results, [text])

    def _add_batch(self, user: User) -> None:
        texts = [self._text(user) for _ in range(_BATCH)]
        with self._window.timed("add_batch"):
            results = self._memory.add_batch(texts, **user.scope)["results"]
        self._added(user, results, texts)

    def _added(self, user: User, results: list[Any], texts: list[str]) -> None:
        """Look at once for what was acknowledged."""
        if [(one["event"], one["memory"]) for one in results] != [("ADD", t) for t in texts]:
            self.wrong(f"an add of {len(texts)} was answered with {str(results)[:200]}")
            return
        for one, text in zip(results, texts, strict=True):
            user.there[one["id"]] = text
            user.changes[one["id"]] = 0
            self._window.count("acknowledged adds")
        self._look(user, results[-1]["id"])

    def _again(self, user: User) -> None:
        memory_id = self._any(user)
        with self._window.timed("add again"):
            (one,) = self._memory.add(user.there[memory_id], **user.scope)["results"]
        if (one["event"], one["id"]) != ("NONE", memory_id):
            self.wrong(f"a known text was answered with {one['event']} {one['id']}")

    def _update(self, user: User) -> None:
        memory_id, text = self._any(user), self._text(user)
        with self._window.timed("update"):
            self._memory.update(memory_id, text)
        user.there[memory_id] = text
        user.changes[memory_id] += 1
        self._look(user, memory_id)

    def _delete(self, user: User) -> None:
        memory_id = self._any(user)
        with self._window.timed("delete"):
            self._memory.delete(memory_id)
        del user.there[memory_id]
        if self._memory.get(memory_id) is not None:
            self.wrong(f"{memory_id} is there after its delete")

    def _erase(self, user: User) -> None:
        memory_id = self._any(user)
        with self._window.timed("erase"):
            self._memory.delete(memory_id, erase=True)
        del user.there[memory_id], user.changes[memory_id]
        if self._memory.get(memory_id) is not None or self._memory.history(memory_id):
            self.wrong(f"{memory_id} is there after it was erased")

    def _get(self, user: User) -> None:
        with self._window.timed("get"):
            self._look(user, self._any(user))

    def _look(self, user: User, memory_id: str) -> None:
        found = self._memory.get(memory_id)
        if found is None:
            self._window.complain("lost adds", f"{memory_id} of {user.name}")
        elif found["memory"] != user.there[memory_id]:
            self.wrong(f"{memory_id} has another text: {found['memory'][:80]!r}")

    def _list(self, user: User) -> None:
        with self._window.timed("list"):
            results = self._memory.get_all(filters=user.scope, limit=None)["results"]
        found = {one["id"]: one["memory"] for one in results}
        if lost := user.there.keys() - found.keys():
            self._window.complain("lost adds", f"{len(lost)} of {user.name}: {sorted(lost)[:3]}")
        if len(results) != len(user.there) or found != user.there:
            self.wrong(f"{user.name} has {len(results)} memories, not {len(user.there)}")

    def _count(self, user: User) -> None:
        with self._window.timed("count"):
            found = self._memory.count(user.scope)
        if found != len(user.there):
            self.wrong(f"count of {user.name}: {found}, not {len(user.there)}")

    def _history(self, user: User) -> None:
        memory_id = self._any(user)
        with self._window.timed("history"):
            events = self._memory.history(memory_id)
        if len(events) != 1 + user.changes[memory_id]:
            self.wrong(f"{memory_id} has {len(events)} events after {user.changes[memory_id]}")

    def _search(self, user: User, mode: Any) -> None:
        memory_id = self._any(user)
        text = user.there[memory_id]
        # Of words only its own mark: all texts share the others.
        query = text.rpartition("(")[2].rstrip(")") if mode == "text" else text
        with self._window.timed(f"search {mode}"):
            results = self._memory.search(query, filters=user.scope, limit=SEARCH_LIMIT, mode=mode)[
                "results"
            ]
        ids = [one["id"] for one in results]
        if memory_id not in ids:
            self.wrong(f"a search ({mode}) for {memory_id}'s own text found {len(ids)} others")
        if strangers := set(ids) - set(user.there):
            self.wrong(
                f"a search ({mode}) found what is not {user.name}'s: {sorted(strangers)[:3]}"
            )


class Load:
    """The threads: begun together, at a rate for all, ended together."""

    def __init__(self, memory: Memory, load: MemoryLoad) -> None:
        self.window = Window()
        users = max(1, 2 * load.rows // (THREADS * ROWS_A_USER))
        self._agents = [Agent(memory, n, users, self.window) for n in range(THREADS)]
        self._every_s = THREADS / load.per_second
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._drive, args=(agent,)) for agent in self._agents
        ]

    def begin(self) -> None:
        """Fill the table, forget what that took, and begin."""
        for agent in self._agents:
            agent.fill()
        self.window.take()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each thread end what it is at. Safe to call twice."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def check_all(self) -> int:
        """Hold everything against the table; gives how many memories there are."""
        return sum(agent.check_all() for agent in self._agents)

    def _drive(self, agent: Agent) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            # Whoever comes late does not make up for it.
            due = max(due, time.monotonic() - 1.0) + self._every_s
            try:
                agent.deed()
            except Exception as error:
                self.window.complain("memory errors", f"{type(error).__name__}: {error}")


def serve(load: MemoryLoad) -> None:
    """Be the child: open, fill, begin; then a window for every line on stdin, until `end`."""
    # Before anything of ours asks for a place for temporary files.
    os.environ["TMPDIR"] = load.scratch
    from memworker import Memory

    answers = open_answers()
    with Memory(load.db, model=load.model, workers=load.workers) as memory:
        running = Load(memory, load)
        running.begin()
        try:
            print(json.dumps({"pid": os.getpid()}), file=answers)
            for line in sys.stdin:
                told = _last(running, memory) if json.loads(line) == "end" else {}
                print(json.dumps(running.window.take() | told), file=answers)
        finally:
            running.stop()


def _last(running: Load, memory: Memory) -> dict[str, int]:
    """End the load, and hold all of the table against what must be there."""
    running.stop()
    rows = running.check_all()
    if (there := memory.count()) != rows:
        running.window.complain("wrong answers", f"{there} memories in all, not {rows}")
    return {"rows": rows}


if __name__ == "__main__":
    serve(MemoryLoad(**json.loads(Path(sys.argv[2]).read_text())))
