"""Runs of the real command in real processes, the oracle, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from memworker import ingest as memworker_ingest
from memworker.store import Table
from tests import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-c", "from memworker.cli.main import run; run()")
# Every process of a run inherits it, so that whoever outlives the run is found.
MARK = "MEMWORKER_TEST_RUN"


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict:
        return json.loads(self.out.splitlines()[-1])


@dataclass
class Run:
    """One process of the command, and the watchdog over it."""

    process: subprocess.Popen
    mark: str
    stdin: object = field(default=None)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout_s: float = PATIENCE_S) -> Done:
        out, err = self.process.communicate(timeout=timeout_s)
        return Done(self.process.returncode, out, err)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait_stopped(self) -> None:
        """Wait until a failpoint has paused the process."""
        wait_for(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)

    def workers(self) -> list[psutil.Process]:
        return [p for p in marked(self.mark) if "multiprocess.spawn" in " ".join(_cmdline(p))]

    def left_behind(self) -> list[psutil.Process]:
        return [process for process in marked(self.mark) if process.pid != self.pid]


def start(*arguments, fail="", once=None, prefix=(), program=PROGRAM, env=None, **options) -> Run:
    """Start the command."""
    mark = uuid.uuid4().hex
    environment = os.environ | {MARK: mark, "MEMWORKER_FAIL": fail} | (env or {})
    if once is not None:
        environment["MEMWORKER_FAIL_ONCE"] = str(once)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [*map(str, prefix), *program, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        **(streams | options),
    )
    return Run(process, mark)


@contextmanager
def memworker(*arguments, **options):
    """Start the command; at the end it is killed if need be, and must leave no process."""
    run = start(*arguments, **options)
    with run.process as process:
        try:
            yield run
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            try:
                wait_for(lambda: not run.left_behind())
            finally:
                for orphan in run.left_behind():
                    orphan.kill()


def ingest(path, db, *more, table="t", **options):
    """Run one ingest with the echo model to its end."""
    with memworker(*arguments(path, db, *more, table=table), **options) as run:
        return run.wait()


def resume(path, db, table="t", **options):
    """Do the same in this process, which costs no start of an interpreter; give the report."""
    paths = [path] if isinstance(path, Path) else path
    return memworker_ingest(paths, db=db, table=table, model="echo", workers=1, **options)


def arguments(path, db, *more, table="t", model="echo"):
    return [
        *("ingest", path, "--db", db, "--table", table, "--model", model),
        *("--workers", "1", "--json", *more),
    ]


def write_input(path: Path, rows: int, start: int = 0, text: str = "text") -> dict[str, str]:
    """Write rows as jsonl and return the oracle: text by id."""
    oracle = {f"id-{i}": f"{text} {i} {'x' * (i % 50)}" for i in range(start, start + rows)}
    lines = (json.dumps({"id": key, "text": value}) + "\n" for key, value in oracle.items())
    path.write_text("".join(lines))
    return oracle


def stored(db: Path, table: str = "t") -> dict[str, str]:
    """Read a table back; an id that is there twice, or a vector not its text's, fails."""
    rows = Table.open(db, table).rows(columns=["id", "text", "vector"])
    ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
    if not ids:
        return {}
    assert len(set(ids)) == len(ids), "an id is there twice"
    lengths = rows["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)[:, 1]
    # The echo encoder's second value is the text's length in bytes.
    assert [len(text.encode()) for text in texts] == lengths.tolist()
    return dict(zip(ids, texts, strict=True))


def must_be_part(db: Path, oracle: dict[str, str]) -> int:
    """Check that what is there is right, as far as it goes, and return how many rows."""
    if not (db / "t.lance/_versions").is_dir() or not list((db / "t.lance/_versions").iterdir()):
        return 0
    there = stored(db)
    assert there.items() <= oracle.items()
    return len(there)


def wait_for(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> object:
    """Wait for something in another process to become true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the watchdog's time is over"
        time.sleep(0.005)
    return found


def versions(db: Path, table: str = "t") -> list[Path]:
    """List manifests, newest first: they are named backwards."""
    return sorted((db / f"{table}.lance/_versions").glob("*.manifest"))


def marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _environment(process) == mark]


def _environment(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def may_mount() -> bool:
    """Tell whether this process may mount file systems in a name space of its own."""
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=PATIENCE_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


__all__ = [name for name in dir() if not name.startswith("_")] + ["signal"]
