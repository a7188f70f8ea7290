"""`memworker sync` as its users call it: what it prints, how it ends, and who else may run."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import typer

from memworker import Table
from memworker.cli.app import app
from tests.faults.harness import memworker, start


def arguments(*more):
    here = Path.cwd()
    model = ("--model", "echo", "--workers", "1")
    return ("sync", here / "notes", "--db", here / "db", "--table", "t", *model, *more)


def sync(*more):
    return start(*arguments(*more)).wait()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("notes")
    for i in range(30):
        Path(f"notes/{i}.md").write_text(f"note {i}")
    return tmp_path


def test_what_it_says_and_its_exit_codes(here):
    done = sync("--dry-run")
    assert done.code == 0 and "would be: 30 documents, 30 added" in done.out, done.err
    Path("notes/bad.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    done = sync("--json")
    assert done.code == 3 and done.report["added"] == 30 and done.report["rejected"] == 1
    assert done.report["embedding"]["written"] == 30
    os.unlink("notes/bad.txt")
    os.unlink("notes/0.md")
    done = sync()
    assert done.code == 0 and "29 unchanged, 1 gone but not removed" in done.out
    assert "--delete removes them" in done.err
    for i in range(1, 30):
        os.unlink(f"notes/{i}.md")
    done = sync("--delete")
    assert done.code == 1 and "--allow-empty" in done.err and "Traceback" not in done.err
    os.rmdir("notes")
    assert sync("--delete").code == 2
    assert Table.open("db", "t").count() == 30


def test_the_options_of_the_page_are_there():
    page = (Path(__file__).parents[2] / "docs" / "INGEST.md").read_text()
    section = page[page.index("## Folders kept in step") :].split("\n## ")[0]
    command = typer.main.get_command(app).commands["sync"]
    there = {option for each in command.params for option in each.opts}
    named = set(re.findall(r"--[a-z][a-z-]*", section))
    assert named >= {"--delete", "--watch", "--chunk", "--allow-empty"} and named <= there


def test_a_second_one_names_the_first_and_ctrl_c_loses_nothing(here):
    with memworker(*arguments(), fail="before_commit:pause") as first:
        first.wait_stopped()
        second = sync()
        assert second.code == 1 and str(first.pid) in second.err and "--wait" in second.err
        first.signal(signal.SIGCONT)
        first.signal(signal.SIGINT)
        done = first.wait()
    assert done.code in (0, 130) and "Traceback" not in done.err
    done = sync("--json")
    assert done.report["added"] + done.report["unchanged"] == 30
    assert json.loads(done.out)["files"] == Table.open("db", "t").count() == 30
