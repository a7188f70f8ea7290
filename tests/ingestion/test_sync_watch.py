"""A folder watched by the real command, in a process of its own; ended as its user ends it."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from memworker import Table, ingest
from tests import PATIENCE_S
from tests.faults.harness import PROGRAM

COMMAND = ("sync", "notes", "--db", "db", "--table", "t", "--model", "echo", "--workers", "1")


class Watching:
    """The command, and the reports of its passes as they come."""

    def __init__(self, *more):
        self.process = subprocess.Popen(
            [*PROGRAM, *COMMAND, "--watch", "--json", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reports = queue.SimpleQueue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self):
        for line in self.process.stdout:
            self.reports.put(json.loads(line))

    def until(self, holds):
        """Take reports until one holds; the last state is what counts, not how many there were."""
        while True:
            report = self.reports.get(timeout=PATIENCE_S)
            if holds(report):
                return report

    def end(self, number):
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        return code, self.process.stderr.read()

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reading.join()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("notes/sub")
    Path("notes/a.md").write_text("alpha")
    return tmp_path


def texts():
    found = Table.open("db", "t").rows(columns=["id", "text"]).to_pylist()
    return {row["id"]: row["text"] for row in found}


def test_changes_are_taken_up_and_ctrl_c_ends_it(here):
    watching = Watching("--delete")
    try:
        watching.until(lambda report: report["files"] == 1)
        # Written slowly, moved, removed with its folder, and replaced by another program.
        with open("notes/sub/slow.md", "w") as file:
            for i in range(3):
                file.write(f"part {i} ")
                file.flush()
        os.rename("notes/a.md", "notes/sub/b.md")
        watching.until(lambda r: r["files"] == 2 and not r["would_remove"])
        assert texts() == {"sub/slow.md": "part 0 part 1 part 2 ", "sub/b.md": "alpha"}
        shutil.rmtree("notes/sub")
        Path("notes/.c.md.swp").write_text("x")
        Path("notes/c.tmp").write_text("gamma")
        os.replace("notes/c.tmp", "notes/c.md")
        watching.until(lambda report: report["files"] == 1 and not report["rejected"])
        assert texts() == {"c.md": "gamma"}
        # The folder goes, as a disk does that is unmounted, and comes back.
        os.rename("notes", "away")
        Path("away/d.md").write_text("delta")
        os.mkdir("notes")
        os.rmdir("notes")
        os.rename("away", "notes")
        watching.until(lambda report: report["files"] == 2)
        assert texts() == {"c.md": "gamma", "d.md": "delta"}
        # Another job may write to the table between two passes.
        ingest([{"id": "x", "text": "mine"}], db="db", table="t", model="echo", workers=1)
        code, said = watching.end(signal.SIGINT)
        assert code == 130 and "Traceback" not in said, said
    finally:
        watching.close()
    assert texts() == {"c.md": "gamma", "d.md": "delta", "x": "mine"}


def test_sigterm_ends_it_too_and_what_cannot_begin_says_so(here):
    # The database within the folder: what it writes itself is no change.
    watching = Watching("--db", "notes/db")
    try:
        watching.until(lambda report: report["files"] == 1)
        code, said = watching.end(signal.SIGTERM)
        assert code == 143 and "Traceback" not in said, said
    finally:
        watching.close()
    shutil.rmtree("notes")
    done = subprocess.run([*PROGRAM, *COMMAND, "--watch"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no folder" in done.stderr
