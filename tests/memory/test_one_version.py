"""Answers that take several looks at a table, while another process commits between any two."""

from __future__ import annotations

from datetime import UTC, datetime

import lancedb
import pytest

from memworker.memory import reads
from memworker.store import Table, read, search, text as words
from tests.store.helpers import SPACE, batch, numbered, vector_of

ME = {"user_id": "me"}
QUERY = vector_of("some words")
ANSWERS = {
    "search": lambda table: [hit.id for hit in table.search(QUERY, where=ME)],
    "search_many": lambda table: [hit.id for hit in table.search_many(QUERY[None], where=ME)[0]],
    "search_text": lambda table: [hit.id for hit in table.search_text("words", where=ME)],
    "search_hybrid": lambda table: [
        hit.id for hit in table.search_hybrid("words", QUERY, where=ME)
    ],
    "get_all": lambda table: [each["id"] for each in reads.get_all(table, ME, 10)["results"]],
    "get_all unbounded": lambda table: [
        each["id"] for each in reads.get_all(table, ME, None)["results"]
    ],
}
LOOKS = ((search, "search"), (search, "search_many"), (words, "search"), (read, "rows"),
         (read, "count"), (read, "find"))  # fmt: skip


@pytest.fixture
def table(tmp_path):
    return Table.open_or_create(tmp_path / "db", "notes", SPACE)


class Writer:
    """Another handle, which commits so many steps before each look of ours."""

    def __init__(self, table, steps, pace):
        self._table, self._steps, self._pace = Table.open(table.db, table.name), steps, pace
        self._number = self.commits = 0
        self.live = {"n0"}
        self._write("n0")
        self.versions = {frozenset(self.live)}
        self._coming = self._forever()

    def act(self):
        for _ in range(self._pace):
            next(self._coming)
            self.commits += 1
            self.versions.add(frozenset(self.live))

    def _forever(self):
        while True:
            for step in self._steps:
                getattr(self, f"_{step}")()
                yield

    def _add(self):
        self._number += 1
        self.live.add(f"n{self._number}")
        self._write(f"n{self._number}")

    def _delete(self):
        gone = min(self.live, key=lambda name: int(name[1:]))
        self.live.remove(gone)
        self._table.delete({"id": gone})

    def _touch(self):
        self._table.append(numbered(self.commits, self.commits + 1))

    def _update(self):
        (gone,) = self.live
        self._number += 1
        self.live = {f"n{self._number}"}
        with self._table.changing() as change:
            change.replace(_mine(gone, superseded_at=datetime.now(UTC)))
            change.insert(_mine(f"n{self._number}"))

    def _erase(self):
        self._table.delete({"superseded_at": {"ne": None}})

    def _write(self, name):
        self._table.append(_mine(name))


def _mine(name, **columns):
    return batch([(name, f"words of {name}")], scopes={"user_id": "me"}, **columns)


@pytest.mark.parametrize("pace", [1, 2])
@pytest.mark.parametrize(
    "steps",
    [("add", "delete"), ("delete", "add"), ("touch", "update", "erase")],
    ids="-".join,
)
@pytest.mark.parametrize("way", ANSWERS)
def test_an_answer_is_one_versions_whoever_writes_between_its_looks(
    table, monkeypatch, way, steps, pace
):
    writer = Writer(table, steps, pace)
    if "text" in way or "hybrid" in way:
        table.maintenance.ensure_index("text")
    for module, name in LOOKS:
        monkeypatch.setattr(module, name, _overtaken(getattr(module, name), table, writer))
    for _ in range(3):
        writer.versions, commits = {frozenset(writer.live)}, writer.commits
        answer = ANSWERS[way](table)
        assert len(set(answer)) == len(answer)
        assert frozenset(answer) in writer.versions
        assert writer.commits > commits


def _overtaken(look, table, writer):
    def overtaken(handle, *given, **options):
        # Not the writer's own looks.
        if not writer._table._lock.held:
            writer.act()
        return look(handle, *given, **options)

    return overtaken


def test_both_halves_of_a_hybrid_search_leave_out_what_expires_by_one_time(table, monkeypatch):
    filters = []
    for module in (search, words):
        look = module.search
        monkeypatch.setattr(
            module, "search",
            lambda *given, look=look: filters.append(given[-1].where) or look(*given),
        )  # fmt: skip
    table.append(batch([("a", "words")], expires_at=datetime(2999, 1, 1, tzinfo=UTC)))
    assert [hit.id for hit in table.search_hybrid("words", QUERY)] == ["a"]
    assert len(filters) == 2 and filters[0] == filters[1] != None  # noqa: E711


def test_a_version_is_opened_once_until_another_is_committed(table):
    table.append(numbered(0, 3))
    first = table.at_one_version(lambda at: at)
    assert table.at_one_version(lambda at: at) is first
    table.append(numbered(3, 5))
    assert first.count() == 3
    assert table.at_one_version(lambda at: (at.version, at.count())) == (first.version + 1, 5)


def test_a_table_dropped_and_made_again_with_as_many_versions_is_read_anew(table):
    table.append(numbered(0, 3))
    assert len(table.search(vector_of("text 1"))) == 3
    lancedb.connect(table.db).drop_table("notes")
    other = Table.create(table.db, "notes", SPACE)
    other.append(numbered(7, 9))
    assert {hit.id for hit in table.search(vector_of("text 1"))} == {"id-7", "id-8"}
