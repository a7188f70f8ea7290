"""Memories written out and read back: whole, once, and without the bad lines."""

from __future__ import annotations

import json
import threading

import pytest

from memworker import Memory, Table, VectorSpace, json_lines
from memworker.ingestion import read_lines
from memworker.memory import transfer
from memworker.memory.rows import NARROW
from tests.memory.helpers import ALICE, one, texts


def lines_of(table, where=None):
    return [json.loads(line) for line in transfer.exported(table, where)]


def import_into(db, pool, lines):
    """Import into the table `memories` of `db`; returns (counts, flaws)."""
    with Memory(db, pool=pool):
        pass  # made, if it is not there
    flaws = []
    raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
    done = transfer.import_lines(Table.open(db, "memories"), pool, raw, flaws.append)
    return done, flaws


def stored(db):
    """Every row but for its vector, by id."""
    rows = Table.open(db, "memories").rows(columns=NARROW).to_pylist()
    return sorted(rows, key=lambda row: row["id"])


@pytest.fixture
def eventful(memory, db):
    """Memories with everything that may be: history, expiry, scopes, odd metadata."""
    kept = one(memory.add("I like tea", **ALICE, metadata={"n": 1, "odd": [None, 0.1, "é\n"]}))
    memory.update(kept["id"], "I like green tea", metadata={})
    gone = one(memory.add("I like milk", agent_id="a", run_id="r"))
    memory.delete(gone["id"])
    memory.add("soon gone", **ALICE, expires_at="2001-01-01T00:00:00Z")
    memory.add("two\nlines \u2028 and a 'quote'", user_id="bob")
    return db


def test_an_export_holds_every_row_and_an_import_brings_all_back(echo, eventful, tmp_path):
    lines = list(transfer.exported(Table.open(eventful, "memories")))
    done, flaws = import_into(tmp_path / "other", echo, lines)
    assert (done.read, done.written, done.skipped, done.refused) == (5, 5, 0, 0) and not flaws
    assert stored(tmp_path / "other") == stored(eventful)
    with Memory(tmp_path / "other", pool=echo) as copy:
        assert texts(copy.get_all(filters=ALICE)) == ["I like green tea"]
        (green,) = copy.get_all(filters=ALICE)["results"]
        assert [e["event"] for e in copy.history(green["id"])] == ["ADD", "UPDATE"]
        # The key came along, so the same memory is known here too.
        assert one(copy.add("I like green tea", **ALICE))["event"] == "NONE"


def test_the_same_import_again_writes_nothing(echo, eventful, tmp_path):
    lines = list(transfer.exported(Table.open(eventful, "memories")))
    import_into(tmp_path / "other", echo, lines)
    version = Table.open(tmp_path / "other", "memories").version
    again, _ = import_into(tmp_path / "other", echo, lines)
    assert (again.read, again.written, again.skipped, again.differing) == (5, 0, 5, 0)
    assert Table.open(tmp_path / "other", "memories").version == version


def test_an_id_that_is_there_keeps_its_text(echo, memory, db):
    kept = one(memory.add("mine", **ALICE))
    line = json.dumps({"id": kept["id"], "memory": "theirs", "user_id": "alice"})
    done, _ = import_into(db, echo, [line])
    assert (done.written, done.skipped, done.differing) == (0, 1, 1)
    assert memory.get(kept["id"])["memory"] == "mine"


def test_an_id_twice_in_the_input_is_written_once(echo, db, monkeypatch):
    monkeypatch.setattr(transfer, "BATCH_ROWS", 2)
    lines = [json.dumps({"id": f"m{i % 3}", "memory": f"text {i}"}) for i in range(9)]
    done, _ = import_into(db, echo, lines)
    assert (done.written, done.skipped, done.differing) == (3, 6, 6)
    assert [row["text"] for row in stored(db)] == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"id": "\xff", "memory": "x"}', "not valid UTF-8 at byte 8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"memory": "x"}', "id is a str, not None"),
        (b'{"id": "", "memory": "x"}', "id is a str"),
        (b'{"id": "\\ud800", "memory": "x"}', "not valid Unicode"),
        (b'{"id": "a"}', "no field 'memory'"),
        (b'{"id": "a", "memory": 3}', "is a str, not int"),
        (b'{"id": "a", "memory": " "}', "must not be blank"),
        (b'{"id": "a", "memory": "\\ud800"}', "lone surrogate"),
        (b'{"id": "a", "memory": "' + b"x" * 2**20 + b'x"}', "over the cap"),
        (b'{"id": "a", "memory": "x", "user_id": 3}', "user_id must be a string"),
        (b'{"id": "a", "memory": "x", "user_id": " "}', "user_id must be a string"),
        (b'{"id": "a", "memory": "x", "metadata": []}', "must be a dict"),
        (b'{"id": "a", "memory": "x", "metadata": {"n": NaN}}', "must be JSON"),
        (b'{"id": "a", "memory": "x", "created_at": "soon"}', "created_at='soon' is no time"),
        (b'{"id": "a", "memory": "x", "superseded_at": 3}', "superseded_at must be"),
    ],
)
def test_a_bad_line_is_told_and_costs_no_other(echo, db, line, reason):
    good = [b'{"id": "before", "memory": "b"}', b"", line, b'{"id": "after", "memory": "a"}']
    done, flaws = import_into(db, echo, good)
    assert (done.read, done.written, done.refused) == (3, 2, 1)
    assert [flaw.line for flaw in flaws] == [3] and reason in flaws[0].reason
    assert "\n" not in flaws[0].reason
    assert [row["id"] for row in stored(db)] == ["after", "before"]


def test_a_line_without_end_is_refused(echo, db, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    lines = ['{"id": "a", "memory": "x"}', "y" * 101, '{"id":"b","memory":"x"}']
    done, flaws = import_into(db, echo, lines)
    assert done.written == 2 and "longer than 100 bytes" in flaws[0].reason


def test_a_line_that_could_not_be_read_is_a_flaw_among_the_others(echo, db):
    table = Table.create(db, "memories", VectorSpace.of(echo.identity))
    lines = ['{"id": "a", "memory": "x"}', transfer.Flaw(2, "torn"), b'{"id": "b", "memory": "x"}']
    flaws = []
    done = transfer.import_lines(table, echo, lines, flaws.append)
    assert (done.read, done.written, done.refused) == (3, 2, 1)
    assert flaws == [transfer.Flaw(2, "torn")]


def test_what_was_committed_before_an_interruption_is_not_embedded_again(echo, db, monkeypatch):
    monkeypatch.setattr(transfer, "BATCH_ROWS", 4)

    def interrupted():
        for i in range(40):
            if i == 30:
                raise KeyboardInterrupt
            yield json.dumps({"id": f"m{i:02}", "memory": f"text {i}"})

    with Memory(db, pool=echo):
        pass
    table = Table.open(db, "memories")
    with pytest.raises(KeyboardInterrupt):
        transfer.import_lines(table, echo, (x.encode() for x in interrupted()), print)
    before = table.count()
    assert 0 < before < 30
    all_lines = [json.dumps({"id": f"m{i:02}", "memory": f"text {i}"}) for i in range(40)]
    done, _ = import_into(db, echo, all_lines)
    assert (done.skipped, done.written) == (before, 40 - before)
    assert len({row["id"] for row in stored(db)}) == table.count() == 40


def test_two_imports_at_once_write_each_memory_once(echo, db, monkeypatch):
    monkeypatch.setattr(transfer, "BATCH_ROWS", 16)
    with Memory(db, pool=echo):
        pass
    lines = [json.dumps({"id": f"m{i}", "memory": f"text {i}"}).encode() for i in range(200)]
    counts = []

    def run():
        table = Table.open(db, "memories")
        counts.append(transfer.import_lines(table, echo, lines, print))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done.written for done in counts) == 200
    assert sum(done.skipped for done in counts) == 200
    assert Table.open(db, "memories").count() == 200


def test_an_export_by_scope_holds_that_scope_only(eventful):
    table = Table.open(eventful, "memories")
    assert {line["memory"] for line in lines_of(table, {"user_id": "bob"})} == {
        "two\nlines \u2028 and a 'quote'"
    }
    assert {line["agent_id"] for line in lines_of(table, {"agent_id": "a"})} == {"a"}


def test_an_export_is_of_one_version(memory, db, monkeypatch):
    monkeypatch.setattr("memworker.store.read.BATCH_ROWS", 4)
    memory.add_batch([f"text {i}" for i in range(20)], **ALICE)
    lines = transfer.exported(Table.open(db, "memories"))
    first = json.loads(next(lines))
    memory.add_batch([f"later {i}" for i in range(20)], **ALICE)
    memory.delete_all(**ALICE, erase=True)
    rest = [json.loads(line) for line in lines]
    assert [line["memory"] for line in [first, *rest]] == [f"text {i}" for i in range(20)]


MEM0 = {
    "results": [
        {
            "id": "m1",
            "memory": "likes tea",
            "hash": "0cc175b9c0f1b6a831c399e269772661",
            "metadata": {"topic": "drinks"},
            "score": 0.5,
            "created_at": "2025-01-01T00:00:00.000000-07:00",
            "updated_at": None,
            "user_id": "alice",
            "role": "user",
            "categories": ["food"],
        },
        {"id": "m2", "memory": "likes milk", "metadata": None, "user_id": "alice"},
    ],
    "relations": [],
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("around", ["answer", "array"])
def test_what_mem0_answers_is_imported(echo, db, tmp_path, indent, around):
    path = tmp_path / "mem0.json"
    given = MEM0 if around == "answer" else MEM0["results"]
    path.write_text(json.dumps(given, indent=indent))
    lines = [line.decode() for _, line, fault in read_lines(path, 2**20, of_json=True) if not fault]
    done, flaws = import_into(db, echo, lines)
    assert (done.read, done.written, flaws) == (2, 2, [])
    one_, two = stored(db)
    assert (one_["id"], one_["text"], one_["user_id"]) == ("m1", "likes tea", "alice")
    kept = {"categories": ["food"], "role": "user", "topic": "drinks"}
    assert json.loads(one_["metadata"]) == kept and two["metadata"] is None
    assert one_["created_at"].isoformat() == "2025-01-01T07:00:00+00:00"


def test_results_that_are_none_are_told(echo, db):
    done, (flaw,) = import_into(db, echo, ['{"results": [1]}'])
    assert (done.read, done.refused) == (1, 1) and "something else than objects" in flaw.reason
