"""One process of many that work on a few users' memories, and write down what they do.

Each call is written down before it is made, and its answer after it has come, with the
system's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from memworker import EmbeddingPool, Memory
from memworker.errors import MemoryNotFound, MemworkerError
from tests.memory.linear.spec import NOT_FOUND

# A word in common, by which all of them are found.
WORD = "red"
ADDED = (f"{WORD} apple", f"{WORD} brick", f"{WORD} cherry")
MODES = ("vector", "text", "hybrid")
# So many memories of one user, and they are deleted rather than read.
MANY = 8


@dataclass(frozen=True, slots=True)
class Task:
    """What one process shall do, and where it writes it down."""

    db: str
    log: str
    name: str
    operations: int
    threads: int
    users: int


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    numbers = count()
    with EmbeddingPool("echo", workers=1) as pool, Memory(task.db, pool=pool) as memory:
        # Whoever starts us lets all begin at once.
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()
        threads = [
            threading.Thread(target=_Worker(task, which, log, memory, numbers).run)
            for which in range(task.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class _Worker:
    """One thread: a seeded sequence of operations on the ids that it has seen."""

    def __init__(
        self, task: Task, which: int, log: int, memory: Memory, numbers: count[int]
    ) -> None:
        self._task, self._log, self._memory, self._numbers = task, log, memory, numbers
        self._name = f"{task.name}-{which}"
        self._random = random.Random(self._name)
        self._seen: dict[str, list[str]] = {f"user-{i}": [] for i in range(task.users)}

    def run(self) -> None:
        while (number := next(self._numbers)) < self._task.operations:
            user = self._random.choice(list(self._seen))
            name, argument = self._chosen(user, number)
            self._note("call", number, user, name, argument)
            try:
                result = self._done(user, name, argument)
            except MemoryNotFound:
                self._note("end", number, True, NOT_FOUND)
            except MemworkerError as error:
                # It says whether it happened or not; to hold it to that is another test's work.
                self._note("end", number, False, str(error))
            except BaseException as error:
                self._note("odd", number, f"{type(error).__name__}: {error}")
                raise
            else:
                self._note("end", number, True, result)

    def _chosen(self, user: str, number: int) -> tuple[str, Any]:
        ids = self._seen[user]
        if not ids or self._random.random() < 0.2:
            return self._random.choice(("add", "get_all")), self._random.choice(ADDED)
        weights = {"add": 20, "update": 20, "delete": 17, "get": 16, "get_all": 6, "newest": 6}
        weights |= {"count": 3, "search": 12}
        name = self._random.choices(list(weights), list(weights.values()))[0]
        if len(ids) > MANY:
            name = "delete"
        if name == "add":
            return name, self._random.choice(ADDED)
        row = self._random.choice(ids)
        if name in ("update", "delete"):
            return name, [row, f"{WORD} {self._name}-{number}" if name == "update" else None]
        return name, self._random.choice(MODES) if name == "search" else row

    def _done(self, user: str, name: str, argument: Any) -> Any:
        memory, filters = self._memory, {"user_id": user}
        if name == "add":
            made = memory.add(argument, user_id=user)["results"][0]
            self._see(user, made["id"])
            return [made["event"], made["id"]]
        if name == "update":
            memory.update(*argument)
            return None
        if name == "delete":
            # Some deleted ids are asked for later, too.
            if self._random.random() < 0.8:
                self._seen[user].remove(argument[0])
            memory.delete(argument[0])
            return None
        if name == "get":
            found = memory.get(argument)
            return None if found is None else found["memory"]
        if name == "count":
            return memory.count(filters)
        if name == "get_all":
            results = memory.get_all(filters=filters, limit=None)["results"]
        elif name == "newest":
            # By another way than all of them: their times first, then the rows.
            results = memory.get_all(filters=filters, limit=100)["results"]
        else:
            results = memory.search(WORD, filters=filters, limit=100, mode=argument)["results"]
        self._seen[user] = [each["id"] for each in results]
        return [[each["id"], each["memory"]] for each in results]

    def _see(self, user: str, row: str) -> None:
        if row not in self._seen[user]:
            self._seen[user].append(row)

    def _note(self, what: str, *facts: Any) -> None:
        line = json.dumps([what, time.monotonic_ns(), *facts])
        os.write(self._log, line.encode() + b"\n")


def command(task: Task) -> list[str]:
    """Return the command line of a process that does a task."""
    return [sys.executable, "-m", __spec__.name, json.dumps(asdict(task))]


if __name__ == "__main__":
    main()
