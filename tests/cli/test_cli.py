"""The command line as scripts rely on it: exit codes, one clear line, JSON keys, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import memworker
from tests import PATIENCE_S

SAMPLE = Path(__file__).parents[2] / "memworker/data/memories.jsonl.gz"
COMMAND = [str(Path(sys.executable).with_name("memworker"))]
KEYS = (
    "read embedded written duplicates conflicts rejected truncated startup_seconds seconds"
    " texts_per_second tokens tokens_per_second padding_ratio workers model precision"
    " table_version"
).split()


def run(*args, code=0, stdin=None):
    done = subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, input=stdin, timeout=PATIENCE_S
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def target(tmp_path):
    return ["--db", tmp_path / "db", "--table", "t"]


def ingest(tmp_path, *args, code=0, stdin=None):
    options = ["--model", "echo", "--workers", 1, *target(tmp_path)]
    return run("ingest", *options, *args, code=code, stdin=stdin)


def test_version():
    assert run("--version").stdout == f"memworker {memworker.__version__}\n"


def test_no_verb_shows_help_and_is_a_usage_error():
    assert "ingest" in run(code=2).stdout


def test_ingest_search_and_table_with_the_real_model(tmp_path):
    args = ["--limit", 40, "--scope", "user_id=user_id", "--json", *target(tmp_path)]
    first = run("ingest", SAMPLE, *args)
    report = json.loads(first.stdout)
    assert set(KEYS) <= set(report) and first.stdout.count("\n") == 1 and not first.stderr
    assert (report["read"], report["written"], report["model"]) == (40, 40, "all-MiniLM-L6-v2")
    again = json.loads(run("ingest", SAMPLE, *args).stdout)
    assert (again["written"], again["duplicates"]) == (0, 40)
    count = json.loads(run("table", "count", "--json", *target(tmp_path)).stdout)
    assert count["rows"] == 40
    info = json.loads(run("table", "info", "--json", *target(tmp_path)).stdout)
    assert (info["dim"], info["distance"]) == (384, "cosine")
    rows = memworker.Table.open(tmp_path / "db", "t").rows(limit=1).to_pylist()
    options = ["--limit", 3, "--json", *target(tmp_path)]
    found = json.loads(run("search", rows[0]["text"], *options).stdout)
    assert found["hits"][0]["id"] == rows[0]["id"] and found["hits"][0]["score"] > 0.999
    where = ["--where", f"user_id={rows[0]['user_id']}"]
    scoped = json.loads(run("search", "anything", *options, *where).stdout)
    assert {hit["user_id"] for hit in scoped["hits"]} == {rows[0]["user_id"]}
    shown = run("search", rows[0]["text"], *target(tmp_path)).stdout
    assert rows[0]["id"] in shown


def test_a_run_that_embedded_nothing_tells_no_speed(tmp_path):
    first = ingest(tmp_path, SAMPLE, "--limit", 5)
    again = ingest(tmp_path, SAMPLE, "--limit", 5)
    assert "texts/s" in first.stdout
    assert "5 duplicates" in again.stdout and "no text was embedded" in again.stdout
    assert "texts/s" not in again.stdout


def test_embed_writes_one_row_a_text(tmp_path):
    out = tmp_path / "v.npy"
    done = run(
        *("embed", SAMPLE, "--out", out, "--model", "echo", "--limit", 50, "--json"),
    )
    report = json.loads(done.stdout)
    assert set(KEYS) <= set(report) and report["table_version"] is None
    assert np.load(out).shape == (50, 384)


def test_stdin_and_plain_output(tmp_path):
    done = ingest(tmp_path, "-", stdin='{"text": "one"}\n{"text": "two"}\n')
    assert "2 read, 2 embedded, 2 written" in done.stdout


def test_rejected_rows_give_exit_code_3_and_a_list(tmp_path):
    done = ingest(tmp_path, "-", "--json", stdin='{"text": "one"}\n{oops\n', code=3)
    report = json.loads(done.stdout)
    (reject,) = map(json.loads, Path(report["rejects"]).read_text().splitlines())
    assert (reject["path"], reject["line"]) == ("-", 2) and "JSON" in reject["reason"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["none.jsonl"], 2, "none.jsonl"),
        (["EMPTY_FOLDER"], 2, "jsonl"),
        (["SAMPLE", "--text-field", "txt"], 2, "text"),
        (["SAMPLE", "--model", "all-MiniLM-L6"], 2, "all-MiniLM-L6-v2"),
        (["SAMPLE", "--workers", "0"], 2, "0"),
        (["SAMPLE", "--limit", "0"], 2, "0"),
        (["SAMPLE", "--on-conflict", "merge"], 2, "merge"),
        (["SAMPLE", "--scope", "user_id"], 2, "KEY=VALUE"),
        (["SAMPLE", "--scope", "owner=user_id"], 2, "owner"),
        (["SAMPLE", "--precision", "fp16"], 2, "fp16"),
        (["EMPTY_FILE"], 1, "no rows"),
        (["SAMPLE", "--db", "UNWRITABLE"], 1, "cannot write"),
        (["SAMPLE", "--table", "../x"], 2, "../x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refuses_well(tmp_path, args, code, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    names = {
        "SAMPLE": SAMPLE,
        "EMPTY_FOLDER": tmp_path / "folder",
        "EMPTY_FILE": tmp_path / "empty.jsonl",
        "UNWRITABLE": tmp_path / "empty.jsonl" / "db",
    }
    given = [names.get(arg, arg) for arg in args]
    done = run("ingest", *target(tmp_path), *given, code=code)
    assert says in done.stderr and not done.stdout
    assert not (tmp_path / "db" / "t.lance").exists()


def test_a_table_of_another_model_is_refused(tmp_path):
    ingest(tmp_path, SAMPLE, "--limit", 5)
    done = run("ingest", SAMPLE, "--limit", 5, *target(tmp_path), code=1)
    assert "echo" in done.stderr and "all-MiniLM-L6-v2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_search_where_there_is_no_table(tmp_path):
    done = run("search", "x", *target(tmp_path), code=1)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "db").exists()


def test_embed_refuses_other_suffixes(tmp_path):
    assert ".npy" in run("embed", SAMPLE, "--out", tmp_path / "v.txt", code=2).stderr


def test_a_local_model_is_searched_by_its_directory(tmp_path):
    from memworker.models import ready_model

    home = ready_model("all-MiniLM-L6-v2").tokenizer.parent
    local = tmp_path / "my-minilm"
    local.mkdir()
    for file in home.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".safetensors"):
            goal = local / file.relative_to(home)
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.symlink_to(file)
    run("ingest", SAMPLE, "--limit", 3, "--model", local, *target(tmp_path))
    refused = run("search", "x", *target(tmp_path), code=2)
    assert "--model DIR" in refused.stderr and "my-minilm" in refused.stderr
    found = run("search", "x", "--model", local, "--json", *target(tmp_path))
    assert len(json.loads(found.stdout)["hits"]) == 3


def test_closed_standard_input_is_told():
    done = subprocess.run(
        ["sh", "-c", '"$0" ingest - --db db --table t --model echo <&-', *COMMAND],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1 and "standard input is closed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_stored_texts_cannot_steer_the_terminal(tmp_path):
    row = json.dumps({"id": "\x1b]0;id\x07", "text": "red \x1b[31m alert \x07"})
    ingest(tmp_path, "-", stdin=row + "\n")
    shown = run("search", "x", *target(tmp_path)).stdout
    assert "alert" in shown and "\x1b" not in shown and "\x07" not in shown


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_named(unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [*COMMAND, "models", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            env=environment,
        )
    assert done.returncode == 1 and "standard output" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_package_can_be_run_as_a_module():
    command = [sys.executable, "-m", "memworker", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.startswith("memworker ") and done.returncode == 0, done.stderr


def test_remote_databases_are_refused():
    done = run("table", "info", "--db", "hdfs://bucket/db", "--table", "t", code=2)
    assert "local directory" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--nope", "No such option: --nope. `memworker --help`"),
        ("serch", "Did you mean 'search', 'serve'?"),
        ("ingest in.jsonl", "Missing option '--db'. `memworker ingest --help`"),
        ("ingest in.jsonl --workers many", "Invalid value for '--workers'"),
        ("table nope", "No such command 'nope'. `memworker table --help`"),
        ("memory add", "Missing argument 'db'. `memworker memory add --help`"),
    ],
)
def test_what_is_typed_wrong_is_told_in_a_line(args, says):
    done = run(*args.split(), code=2)
    assert done.stdout == "" and says in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("memworker: ")


@pytest.mark.parametrize(("words", "found"), [("mod", "models"), ("ingest --preci", "--precision")])
def test_the_shell_completes(words, found):
    asked = {"_MEMWORKER_COMPLETE": "complete_bash", "COMP_WORDS": f"memworker {words}"}
    done = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        env=os.environ | asked | {"COMP_CWORD": str(len(words.split()))},
    )
    assert done.stdout.split() == [found]
