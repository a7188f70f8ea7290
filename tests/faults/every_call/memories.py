"""A session of a Memory, and memories imported and exported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from memworker import EmbeddingPool, Memory
from memworker.errors import MemoryNotFound, MemworkerError
from memworker.memory import reads, transfer
from memworker.memory.core import EVERYTHING
from memworker.store import Table, VectorSpace
from tests.faults.every_call.scenario import (
    NOTHING_COMMITTED,
    UNKNOWN,
    Arm,
    Bench,
    Outcome,
    Scenario,
    all_rows,
    command,
    database,
    echoed,
    right,
    seemly,
    tidy,
    unique,
)

TABLE = "memories"
USER = {"user_id": "alice"}
# The last two are one run's.
THERE = [f"memory {i}" for i in range(9)]
RUN = "run-1"


@dataclass(frozen=True, slots=True)
class View:
    """What is there: texts of the live memories by id, their metadata, and their events."""

    live: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)
    events: dict[str, list[str]] = field(default_factory=dict)

    def times(self, text: str) -> int:
        return list(self.live.values()).count(text)


@dataclass(frozen=True, slots=True)
class Deed:
    """One call of a session, and what shows that it was done, or that it was not."""

    name: str
    do: Callable[[Memory], Any]
    done: Callable[[View], bool]
    undone: Callable[[View], bool]
    # Looked at afterwards only, for a session does not read its own history.
    traced: Callable[[View], bool] = lambda view: True


def deeds(ids: list[str]) -> list[Deed]:
    """Return the calls of the session, each on memories of its own."""
    old = THERE
    return [
        Deed(
            "add",
            lambda memory: memory.add("new one", **USER),
            lambda view: view.times("new one") == 1,
            lambda view: view.times("new one") == 0,
        ),
        Deed(
            "add_batch",
            lambda memory: memory.add_batch(["new two", "new three"], **USER),
            lambda view: view.times("new two") == view.times("new three") == 1,
            lambda view: view.times("new two") == view.times("new three") == 0,
        ),
        Deed(
            "update",
            lambda memory: memory.update(ids[0], "memory 0 anew"),
            lambda view: view.live.get(ids[0]) == "memory 0 anew",
            lambda view: view.live.get(ids[0]) == old[0],
            lambda view: view.events[ids[0]] == ["ADD", "UPDATE"],
        ),
        Deed(
            "update a duplicate",
            lambda memory: memory.add(old[1], metadata={"n": 2}, on_duplicate="update", **USER),
            lambda view: view.times(old[1]) == 1 and view.metadata.get(ids[1], 2) == 2,
            lambda view: view.times(old[1]) == 1 and view.metadata.get(ids[1], 1) == 1,
        ),
        Deed(
            "delete",
            lambda memory: memory.delete(ids[2]),
            lambda view: ids[2] not in view.live,
            lambda view: view.live.get(ids[2]) == old[2],
            lambda view: view.events[ids[2]] == ["ADD", "DELETE"],
        ),
        Deed(
            "erase",
            lambda memory: memory.delete(ids[3], erase=True),
            lambda view: ids[3] not in view.live,
            lambda view: view.live.get(ids[3]) == old[3],
            lambda view: view.events[ids[3]] == [],
        ),
        Deed(
            "allow a duplicate",
            lambda memory: memory.add(old[4], on_duplicate="allow", **USER),
            lambda view: view.times(old[4]) == 2,
            lambda view: view.times(old[4]) == 1,
        ),
        Deed(
            "delete a run",
            lambda memory: memory.delete_all(run_id=RUN),
            lambda view: ids[7] not in view.live and ids[8] not in view.live,
            lambda view: ids[7] in view.live and ids[8] in view.live,
        ),
    ]


def questions(ids: list[str]) -> dict[str, Callable[[Memory], dict[str, str]]]:
    """Return the reads of the session; each tells texts by id."""

    def texts(found: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
        return {each["id"]: each["memory"] for each in found["results"]}

    return {
        "get_all": lambda memory: texts(memory.get_all(filters=USER, limit=None)),
        "search": lambda memory: texts(memory.search("memory", filters=USER, limit=100)),
        "search by words": lambda memory: texts(
            memory.search("memory new", filters=USER, limit=100, mode="text")
        ),
        "get": lambda memory: {i: m["memory"] for i in ids if (m := memory.get(i))},
    }


class Session(Scenario):
    """Adds, updates, deletes and searches of one Memory on a table that is there."""

    name = "memory"
    of_table = TABLE

    def acknowledged(self, folder: Path, outcome: Outcome) -> bool:
        told = _told(folder)
        # Searches build an index of words, which fails none of them; that it failed is told.
        done = bool(told) and all(how == "done" for how, _ in told.values())
        return done and "could not be forced to the disk" not in outcome.err

    def prepare(self, folder: Path, bench: Bench) -> None:
        pool = bench.pool()
        space = VectorSpace.of(pool.identity)
        Table.open_or_create(database(folder), TABLE, space, durable=self.durable)
        with Memory(database(folder), pool=pool) as memory:
            runs = {7: RUN, 8: RUN}
            added = [
                memory.add(text, metadata={"n": 1}, run_id=runs.get(at), **USER)
                for at, text in enumerate(THERE)
            ]
        (folder / "ids.json").write_text(json.dumps([one["results"][0]["id"] for one in added]))

    def run(self, folder: Path, arm: Arm) -> None:
        told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        ids = _ids(folder)
        with EmbeddingPool("echo", workers=1) as pool:
            arm()
            with Memory(database(folder), pool=pool) as memory:
                for deed in deeds(ids):
                    _noted(told, deed.name, partial(deed.do, memory))
                for name, ask in questions(ids).items():
                    _noted(told, name, partial(ask, memory))

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        told = _told(folder)
        opened = bool(told)
        if opened or outcome.killed:
            yield from seemly(outcome, (0,))
        elif "Traceback" in outcome.err and "memworker.errors." not in outcome.err:
            # Opened by a script: an error of memworker's own tree ends it, as it should.
            yield f"no error of memworker's own: {outcome.err[-1500:]}"
        failed = [name for name, (how, _) in told.items() if how == "failed"]
        if len(failed) > 1 and not outcome.ongoing:
            yield f"one call failed once, and so did {failed}: {told}"
        yield from (f"{name}: {why}" for name, (how, why) in told.items() if how == "odd")
        ids = _ids(folder)
        view = yield from _view(folder, ids)
        if view is None:
            return
        for deed in deeds(ids):
            yield from _held(deed, told.get(deed.name, ("not begun", "")), view)
        for name in questions(ids):
            if told.get(name, ("", ""))[0] == "done":
                yield from _answered(name, told, View(told[name][1]), ids)
        if not opened:
            return
        yield from tidy(folder, outcome)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        ids = _ids(folder)
        view = yield from _view(folder, ids)
        if view is None:
            return
        with Memory(database(folder), pool=bench.pool()) as memory:
            for deed in deeds(ids):
                if not deed.done(view):
                    try:
                        deed.do(memory)
                    except MemoryNotFound as error:
                        yield f"{deed.name}: {error}"
        view = yield from _view(folder, ids)
        if view is not None:
            yield from (f"{deed.name} is not done" for deed in deeds(ids) if not deed.done(view))
            if len(view.live) != len(THERE):
                yield f"{len(view.live)} memories are live: {view.live}"


class DurableSession(Session):
    """The same on a table whose commits are forced to the disk."""

    name = "memory-durable"
    durable = True


class Import(Scenario):
    """Fifty lines that an export wrote, two of them bad, into a new table."""

    name = "import"

    def prepare(self, folder: Path, bench: Bench) -> None:
        lines = [json.dumps({"id": f"m-{i}", "memory": f"text {i}", **USER}) for i in range(48)]
        lines.insert(5, "no JSON")
        lines.insert(30, json.dumps({"id": "m-x", "memory": " "}))
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")

    def run(self, folder: Path, arm: Arm) -> None:
        given = ("memory", "import", database(folder), folder / "in.jsonl")
        command(arm, *given, "--model", "echo", "--workers", 1, "--json")

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (1, 3))
        there = yield from right(database(folder), _imported(), TABLE)
        if outcome.status == 3:
            said = json.loads(outcome.out)
            if there != 48 or said["written"] + said["skipped"] != 48 or said["refused"] != 2:
                yield f"it said {said}, and {there} rows are there of 48"
        if NOTHING_COMMITTED in outcome.err and there:
            yield f"it said that nothing was committed, and {there} rows are: {outcome.err}"
        yield from tidy(folder, outcome)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        pool = bench.pool()
        table = Table.open_or_create(database(folder), TABLE, VectorSpace.of(pool.identity))
        with (folder / "in.jsonl").open("rb") as file:
            done = transfer.import_lines(table, pool, file, lambda flaw: None)
        there = yield from right(database(folder), _imported(), TABLE)
        if there != 48 or done.written + done.skipped != 48:
            yield f"{there} rows are there of 48: {done}"


class Export(Scenario):
    """Memories into a file that is there: it is the old one or the new one, whole."""

    name = "export"
    old = "what was here before\n"

    def prepare(self, folder: Path, bench: Bench) -> None:
        with Memory(database(folder), pool=bench.pool()) as memory:
            memory.add_batch([f"text {i}" for i in range(50)], **USER)
        self._file(folder).write_text(self.old)

    def run(self, folder: Path, arm: Arm) -> None:
        out = self._file(folder)
        given = ("--output", out, "--overwrite", "--json")
        command(arm, "memory", "export", database(folder), *given)

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        yield from seemly(outcome, (0, 1))
        text = self._file(folder).read_text()
        texts = [] if text == self.old else [json.loads(line)["memory"] for line in _lines(text)]
        if text != self.old and sorted(texts) != sorted(f"text {i}" for i in range(50)):
            yield f"the file is neither the old one nor whole: {text[:200]}"
        if outcome.status == 0 and (not texts or json.loads(outcome.out)["rows"] != 50):
            yield f"it said {outcome.out}, and the file has {len(texts)} memories"
        yield from tidy(folder, outcome)

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        lines = list(transfer.exported(Table.open(database(folder), TABLE)))
        if len(lines) != 50:
            yield f"{len(lines)} memories are there of 50"

    def _file(self, folder: Path) -> Path:
        return database(folder).parent / "out.jsonl"


def _noted(told: int, name: str, deed: Callable[[], Any]) -> None:
    """Do it, and write down that it is begun, and how it ended, so that a kill loses neither."""

    def note(how: str, what: Any) -> None:
        os.write(told, json.dumps([name, how, what]).encode() + b"\n")

    note("begun", "")
    try:
        note("done", deed())
    except MemworkerError as error:
        note("failed", str(error))
    except BaseException as error:
        note("odd", f"{type(error).__name__}: {error}")


def _told(folder: Path) -> dict[str, tuple[str, Any]]:
    file = folder / "told"
    lines = file.read_text().splitlines() if file.exists() else []
    return {name: (how, what) for name, how, what in map(json.loads, lines)}


def _held(deed: Deed, told: tuple[str, Any], view: View) -> Iterator[str]:
    how, what = told
    done = deed.done(view) and deed.traced(view)
    undone = deed.undone(view)
    if how == "done" and not done:
        yield f"{deed.name} was acknowledged ({what}) and is not there: {view}"
    elif how == "not begun" and not undone:
        yield f"{deed.name} was not begun and shows: {view}"
    elif how == "failed" and UNKNOWN not in what and not undone:
        yield f"{deed.name} failed ({what}) and shows: {view}"
    elif not (done or undone):
        yield f"{deed.name} ({how}) is done by half: {view}"


def _answered(name: str, told: dict[str, Any], view: View, ids: list[str]) -> Iterator[str]:
    """Check that a read of the session saw what was acknowledged before it, and only that."""
    for deed in deeds(ids):
        how, what = told.get(deed.name, ("not begun", ""))
        # `get` asks for the memories that were there before, by their ids.
        if name == "get" and "add" in deed.name or "duplicate" in deed.name:
            continue
        if how == "done" and not deed.done(view):
            yield f"{name} does not see {deed.name}: {view}"
        if how == "failed" and UNKNOWN not in what and not deed.undone(view):
            yield f"{name} sees {deed.name}, which failed: {view}"


def _view(folder: Path, ids: list[str]) -> Iterator[str]:
    rows = yield from all_rows(database(folder), TABLE)
    if rows is None:
        yield "there is no table"
        return None
    yield from unique(rows["id"].to_pylist())
    yield from echoed(rows)
    table = Table.open(database(folder), TABLE)
    found = reads.get_all(table, {"AND": [EVERYTHING, USER]}, None)["results"]
    return View(
        {each["id"]: each["memory"] for each in found},
        {each["id"]: each["metadata"].get("n") for each in found if each.get("metadata")},
        {one: [event["event"] for event in reads.events(table, one)] for one in ids},
    )


def _ids(folder: Path) -> list[str]:
    return json.loads((folder / "ids.json").read_text())


def _imported() -> dict[str, str]:
    return {f"m-{i}": f"text {i}" for i in range(48)}


def _lines(text: str) -> list[str]:
    return text.splitlines()
