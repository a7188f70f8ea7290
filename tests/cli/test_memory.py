"""``memworker memory`` as scripts call it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memworker import Memory, Reranker, Table
from memworker.cli.memory import app
from memworker.errors import (
    FilterError,
    MemoryNotFound,
    ScopeMissing,
    StoreError,
    TableMismatch,
    TableNotFound,
    UnknownModel,
    UsageError,
)
from tests import PATIENCE_S
from tests.memory.helpers import Picky
from tests.models.tiny import make_cross_encoder

COMMAND = [str(Path(sys.executable).with_name("memworker")), "memory"]
ALICE = ("--user-id", "alice")
ECHO = ("--model", "echo", "--workers", "1")


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "db")


def run(*args, code=0, stdin=None):
    """Call the verb in this process; returns what came on stdout, and on stderr."""
    result = CliRunner().invoke(app, list(map(str, args)), input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def run_json(*args, code=0, stdin=None):
    out, _ = run(*args, "--json", code=code, stdin=stdin)
    assert out.count("\n") == 1
    return json.loads(out)


def call(*args, code=0, stdin=None):
    """Call the command as a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, input=stdin, timeout=PATIENCE_S
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def listed(db, *args):
    return [record["memory"] for record in run_json("list", db, *args)["results"]]


@pytest.fixture
def filled(db):
    run("add", db, "I like tea", "I like milk", *ALICE, *ECHO, "--metadata", "n=3")
    run("add", db, "the sky is blue", "--agent-id", "a", *ECHO)
    return db


def test_exit_codes_and_errors_in_one_line(db):
    done = call("add", db, "I like tea", "", *ALICE, *ECHO, "--json", code=3)
    told = json.loads(done.stdout)
    assert (told["added"], told["refused"]) == (1, 1)
    assert done.stderr == "memworker: text 2: a memory must not be blank; give it some text\n"
    refused = call("list", db, code=2)
    assert refused.stderr.startswith("memworker: whose memories?") and not refused.stdout
    assert refused.stderr.count("\n") == 1
    gone = call("delete", db, "nobody", code=1)
    assert gone.stderr.count("\n") == 1 and "'nobody'" in gone.stderr
    found = call("search", db, "tea", *ALICE)
    assert told["results"][0]["id"] in found.stdout and not found.stderr


def test_add_says_what_became_of_each_and_adds_once(filled):
    again = run_json("add", filled, "I like tea", "new", *ALICE)
    assert (again["added"], again["unchanged"]) == (1, 1)
    assert [result["event"] for result in again["results"]] == ["NONE", "ADD"]
    out, _ = run("add", filled, "I like tea", *ALICE, "--on-duplicate", "update")
    assert out.startswith("UPDATE  ") and out.endswith("  I like tea\n")
    assert sorted(listed(filled, *ALICE)) == ["I like milk", "I like tea", "new"]


def test_metadata_are_found_by_the_words_that_gave_them(db):
    options = ["--metadata", "n=3", "--metadata", '{"tags": ["x"]}', "--metadata", 'code="3"']
    told = run_json("add", db, "a", *ALICE, *ECHO, *options, "--metadata", "x=nan")
    assert told["results"][0]["metadata"] == {"n": 3, "tags": ["x"], "code": "3", "x": "nan"}
    assert listed(db, *ALICE, "--where", "n>=3", "--where", 'code="3"') == ["a"]
    assert listed(db, *ALICE, "--where", "n>3") == []


def test_lines_of_stdin_are_memories(db):
    lines = b"one\r\n\n  \ntwo\nb\xffd\nthree"
    told = run_json("add", db, "-", *ALICE, *ECHO, stdin=lines, code=3)
    assert [r.get("memory", r.get("at")) for r in told["results"]] == ["one", "two", "line 5"] + [
        "three"
    ]
    assert sorted(listed(db, *ALICE)) == ["one", "three", "two"]


def test_json_lines_bring_their_own_metadata(db):
    lines = [
        '{"text": "a", "metadata": {"n": 1}}',
        '"b"',
        '{"role": "user", "content": "c"}',
        '{"role": "system", "content": "nobody\'s"}',
        "nope",
        '{"content": "no role"}',
        '{"text": "d", "metadata": 3}',
        "3",
    ]
    stdin = "\n".join(lines)
    args = ["add", db, "-", "--jsonl", *ALICE, *ECHO, "--metadata", "from=x"]
    told = run_json(*args, stdin=stdin, code=3)
    good = {r["memory"]: r["metadata"] for r in told["results"] if "memory" in r}
    assert good == {
        "a": {"n": 1, "from": "x"},
        "b": {"from": "x"},
        "c": {"role": "user", "from": "x"},
    }
    refused = [r["at"] for r in told["results"] if "error" in r]
    assert refused == ["line 5", "line 6", "line 7", "line 8"] and told["refused"] == 4


def test_a_long_stream_is_added_in_batches(db, monkeypatch):
    monkeypatch.setattr("memworker.cli.memory_items._BATCH", 8)
    stdin = "\n".join(f"text {i}" if i != 13 else '"' for i in range(20))
    told = run_json("add", db, "-", *ALICE, *ECHO, stdin=stdin)
    assert [r["memory"] for r in told["results"]] == stdin.split("\n")
    assert told["added"] == 20


def test_expired_memories_do_not_show(filled):
    run("add", filled, "over", *ALICE, "--expires-at", "2001-01-01T00:00:00Z")
    assert "over" not in listed(filled, *ALICE)


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_search_looks_in_its_scope_only(filled, mode):
    found = run_json("search", filled, "tea", *ALICE, "--mode", mode, "--limit", 1)
    (record,) = found["results"]
    assert record["user_id"] == "alice" and record["score"] > 0
    other = run_json("search", filled, "tea", "--agent-id", "a", "--mode", mode)
    assert "I like tea" not in [r["memory"] for r in other["results"]]
    found = run_json("search", filled, "tea", *ALICE, "--mode", mode, "--where", "n=4")
    assert found["results"] == []
    shown, _ = run("search", filled, "tea", *ALICE, "--mode", mode, "--threshold", 1000)
    assert shown == "no memories found\n"


def test_list_is_newest_first_and_bounded(filled):
    run("add", filled, "newest", *ALICE)
    assert listed(filled, *ALICE, "--limit", 1) == ["newest"]
    shown, _ = run("list", filled, "--user-id", "nobody")
    assert shown == "no memories\n"


def test_what_needs_no_vector_starts_no_process(filled, tmp_path):
    # What the system knows of children that have ended, and what lives.
    code = (
        "import json, os, resource, sys\n"
        "import psutil\n"
        "from memworker.cli.app import app\n"
        "for args in json.loads(sys.argv[1]):\n"
        "    app(args, standalone_mode=False)\n"
        "ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(ended > 0, psutil.Process().children(), file=sys.stderr)\n"
    )

    def started_any(*commands):
        argv = [sys.executable, "-c", code, json.dumps(commands)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        return done.stderr != "False []\n"

    out = str(tmp_path / "x")
    (first, *_) = run_json("list", filled, *ALICE)["results"]
    assert not started_any(
        ["memory", "list", filled, *ALICE],
        ["memory", "search", filled, "tea", *ALICE, "--mode", "text"],
        ["memory", "history", filled, first["id"]],
        ["memory", "export", filled, "-o", out],
        ["memory", "import", filled, out, *ECHO],
        ["table", "count", "--db", filled, "--table", "memories"],
        ["memory", "delete", filled, first["id"]],
        ["memory", "delete", filled, "--all", *ALICE, "--erase"],
    )
    assert started_any(["memory", "search", filled, "tea", *ALICE]), "the watch sees nothing"


def test_what_needs_no_vector_needs_no_model(filled, tmp_path):
    """A table whose model lay in a folder that is gone can be read, moved and emptied."""
    with Memory(filled, table="odd", model=Picky(), workers=1) as memory:
        kept, gone = memory.add_batch(["kept", "gone"], user_id="alice")["results"]
    odd = (filled, "--table", "odd")
    assert listed(*odd, *ALICE) == ["gone", "kept"]
    assert run_json("delete", *odd, gone["id"])["deleted"] == 1
    assert len(run_json("history", *odd, gone["id"])["events"]) == 2
    assert run_json("search", *odd, "kept", *ALICE, "--mode", "text")["results"]
    assert run_json("export", *odd, "-o", tmp_path / "x")["rows"] == 2
    with pytest.raises(UnknownModel, match="--model DIR"):
        run("search", *odd, "kept", *ALICE)
    assert run_json("delete", *odd, "--all", *ALICE)["deleted"] == 1


def test_delete_by_id_tells_which_are_not_there(filled):
    ids = [record["id"] for record in run_json("list", filled, *ALICE)["results"]]
    out, err = run("delete", filled, ids[0], "nobody", ids[0], code=3)
    assert out == "1 deleted\n" and "'nobody'" in err
    told = run_json("delete", filled, "nobody", code=1)
    assert told["deleted"] == 0 and len(told["errors"]) == 1
    assert [e["event"] for e in run_json("history", filled, ids[0])["events"]] == ["ADD", "DELETE"]
    assert run_json("delete", filled, ids[0], "--erase")["erased"]
    with pytest.raises(MemoryNotFound):
        run("history", filled, ids[0])


def test_delete_all_needs_a_scope_and_keeps_to_it(filled):
    for args in (["--all"], [], ["some-id", *ALICE], ["some-id", "--all", *ALICE]):
        with pytest.raises(UsageError):
            run("delete", filled, *args)
    assert run_json("delete", filled, "--all", *ALICE)["deleted"] == 2
    assert listed(filled, *ALICE) == []
    assert listed(filled, "--agent-id", "a") == ["the sky is blue"]


def test_export_and_import_by_stdin_and_stdout(filled):
    out, err = run("export", filled, *ALICE)
    assert err == "" and [json.loads(x)["user_id"] for x in out.splitlines()] == ["alice"] * 2
    _, err = run("export", filled, "--json")
    assert json.loads(err) == {"table": "memories", "output": "-", "rows": 3}
    told = run_json("import", f"{filled}2", "-", *ECHO, stdin=out + "bad\n", code=3)
    assert (told["read"], told["written"], told["refused"]) == (3, 2, 1)
    assert told["errors"][0]["line"] == 3
    out, err = run("import", f"{filled}2", "-", stdin=out)
    assert out == "2 read, 0 written, 2 there already, 0 refused\n" and err == ""
    assert listed(f"{filled}2", *ALICE) == listed(filled, *ALICE)


@pytest.mark.parametrize("how", ["gzip", "utf-16", "mark", "torn"])
def test_lines_are_read_as_an_ingest_reads_them(filled, db, tmp_path, how):
    out, _ = run("export", filled, *ALICE)
    packed = gzip.compress(out.encode())
    raw = {
        "gzip": packed,
        "utf-16": out.encode("utf-16"),
        "mark": b"\xef\xbb\xbf" + out.replace("\n", "\r\n").encode(),
        "torn": packed[:-12],
    }[how]
    code = 3 if how == "torn" else 0
    told = run_json("import", f"{db}2", "-", *ECHO, stdin=raw, code=code)
    assert told["refused"] == (code > 0) and told["written"] == 2 - told["refused"]
    (tmp_path / "backup").write_bytes(raw)
    told = run_json("import", f"{db}2", tmp_path / "backup", *ECHO, code=code)
    assert told["skipped"] == 2 - told["refused"]


def test_what_is_added_is_read_so_too(db):
    packed = gzip.compress(b'"a"\n\n"b"\n')
    assert run_json("add", db, "-", "--jsonl", *ALICE, *ECHO, stdin=packed)["added"] == 2
    torn = packed[:-9]
    told = run_json("add", db, "-", "--jsonl", *ALICE, *ECHO, stdin=torn, code=3)
    assert "nothing can be read after" in told["results"][-1]["error"]


def test_an_export_that_fails_leaves_the_file_as_it_was(filled, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("precious")
    for file in Path(filled, "memories.lance", "data").iterdir():
        file.unlink()
    with pytest.raises(StoreError):
        run("export", filled, "-o", target, "--overwrite")
    assert target.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["db", "out.jsonl"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["add", "DB", "x"], ScopeMissing),
        (["add", "DB", *ALICE], UsageError),
        (["add", "DB", "x", *ALICE, "--metadata", "n"], UsageError),
        (["add", "DB", "x", *ALICE, "--metadata", "{n"], UsageError),
        (["add", "DB", "x", *ALICE, "--metadata", '{"n": 1, "n": 2}'], UsageError),
        (["add", "DB", "x", *ALICE, "--metadata", "n=1", "--metadata", "n=2"], UsageError),
        (["add", "DB", "x", *ALICE, "--expires-at", "soon"], UsageError),
        (["add", "DB", "x", *ALICE, "--on-duplicate", "never"], UsageError),
        (["add", "DB", "x", *ALICE, "--precision", "int3"], UsageError),
        (["search", "DB", "x"], ScopeMissing),
        (["search", "DB", " ", *ALICE], UsageError),
        (["search", "DB", "x", *ALICE, "--mode", "guess"], UsageError),
        (["search", "DB", "x", *ALICE, "--where", "nonsense"], FilterError),
        (["list", "DB", "--user-id", ""], UsageError),
        (["export", "DB", "--user-id", ""], UsageError),
        (["search", "DB", "x", *ALICE, "--threshold", "nan"], UsageError),
        (["search", "DB", "x", *ALICE, "--limit", str(2**70)], UsageError),
        (["history", "DB", "nobody"], MemoryNotFound),
        (["search", "DB", "x", *ALICE, "--table", "other"], TableNotFound),
        (["delete", "DB", "x", "--table", "other"], TableNotFound),
    ],
)
def test_errors_are_ours(filled, args, error):
    with pytest.raises(error):
        run(*(filled if arg == "DB" else arg for arg in args))


def test_a_table_of_another_model_is_refused_before_any_worker(filled):
    with pytest.raises(TableMismatch):
        run("add", filled, "x", *ALICE, "--model", "all-MiniLM-L6-v2")
    with pytest.raises(TableMismatch):
        run("import", filled, os.devnull, "--model", "all-MiniLM-L6-v2")


@pytest.mark.parametrize("verb", [["add", "DB", "x"], ["search", "DB", "x"], ["list", "DB"]])
def test_a_missing_scope_is_told_in_the_words_of_a_command_line(filled, verb):
    with pytest.raises(ScopeMissing, match="Give --user-id, --agent-id or --run-id"):
        run(*(filled if word == "DB" else word for word in verb))


def test_an_add_whose_output_nobody_reads_says_how_far_it_came(db):
    command = [*COMMAND, "add", db, "-", *ALICE, *ECHO]
    reader, writer = os.pipe()
    os.close(reader)
    lines = "".join(f"fact {n}\n" for n in range(2000))
    done = subprocess.run(
        command, input=lines, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S
    )
    os.close(writer)
    assert done.returncode == 1
    assert "all up to line 512 is stored" in done.stderr
    assert Table.open(db, "memories").count() == 512


def test_search_shows_what_stands_beside_a_hit(db):
    run("add", db, "one", "two", "three", *ALICE, *ECHO)
    asked = ("search", db, "two", *ALICE, "--mode", "text", "--context", 1)
    (found,) = run_json(*asked)["results"]
    sides = [[one["memory"] for one in found[side]] for side in ("before", "after")]
    assert sides == [["one"], ["three"]]
    shown, _ = run(*asked, "--recency-half-life", 30)
    assert [shown.index(word) for word in ("one", "two", "three")] == sorted(
        shown.index(word) for word in ("one", "two", "three")
    )
    with pytest.raises(UsageError, match="recency_half_life"):
        run(*asked, "--recency-half-life", 0)


def test_search_has_a_cross_encoder_order_what_it_finds(db, tmp_path):
    folder = make_cross_encoder(tmp_path / "cross")
    run("add", db, "w1 w2", "w1 w9 w9", "w1", *ALICE, *ECHO)
    found = run_json("search", db, "w1", *ALICE, "--mode", "text", "--rerank", folder)["results"]
    with Reranker(folder, workers=1) as reranker:
        ranked = reranker.rerank("w1", ["w1 w2", "w1 w9 w9", "w1"])
    assert [one["score"] for one in found] == pytest.approx([one.score for one in ranked])
