"""What a scenario is, and what every run of one is held against."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from memworker import EmbeddingPool
from memworker.errors import MemworkerError, TableNotFound
from memworker.store import Table
from memworker.store.durable import files_of
from memworker.store.lance import table_names
from memworker.store.manifest import read_manifest, versions
from memworker.store.verify import verify_table
from tests.faults.every_call.shim import PATH_BYTES, WENT_WELL, Called, Kind

Arm = Callable[[], None]

WATCHED = "watched"
KILLED = -9
# What no user may ever see, whatever fails.
UNSEEMLY = ("Traceback", "panicked", "Exception ignored", "RuntimeWarning")
NOTHING_COMMITTED = "nothing of this batch was committed"
UNKNOWN = "cannot be told"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and what it said.

    `messy` where files may have been left behind, `ongoing` where more than one call failed;
    `failed` are the paths whose calls did, in `folder/watched`.
    """

    status: int
    out: str
    err: str
    messy: bool = False
    ongoing: bool = False
    failed: tuple[str, ...] = ()

    @property
    def killed(self) -> bool:
        return self.status == KILLED


class Bench:
    """What the driver lends to preparations and checks: pools and a folder without faults."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._pools: dict[str, EmbeddingPool] = {}

    def pool(self, model: Any = "echo") -> EmbeddingPool:
        """Return the pool of a model, started when it is first asked for."""
        if str(model) not in self._pools:
            self._pools[str(model)] = self._stack.enter_context(EmbeddingPool(model, workers=1))
        return self._pools[str(model)]

    def close(self) -> None:
        self._stack.close()


class Scenario:
    """One job; `folder` holds its inputs, and `folder/watched` all that the faults concern."""

    name = ""
    of_table = "t"
    # Whether each commit is to be on the disk before it is acknowledged.
    durable = False

    def acknowledged(self, folder: Path, outcome: Outcome) -> bool:
        """Tell whether all of the job was said to be done."""
        return outcome.status in (0, 3)

    def prepare(self, folder: Path, bench: Bench) -> None:
        """Make what is there before the job; done once, and copied for each case."""

    def run(self, folder: Path, arm: Arm) -> None:
        """Do the job as a user does, in the child; `arm` begins the counting of calls."""
        raise NotImplementedError

    def check(self, folder: Path, outcome: Outcome, bench: Bench) -> Iterator[str]:
        """Say what is wrong after a run with faults: falsely acknowledged, lost, unreadable."""
        raise NotImplementedError

    def finish(self, folder: Path, bench: Bench) -> Iterator[str]:
        """Do the same job again, without faults, and say what is wrong then."""
        raise NotImplementedError


def watched(folder: Path) -> Path:
    return folder / WATCHED


def database(folder: Path) -> Path:
    return folder / WATCHED / "db"


def command(arm: Arm, *arguments: object) -> None:
    """Run the command line in this process, to its exit."""
    from memworker.cli.main import run

    sys.argv = ["memworker", *map(str, arguments)]
    arm()
    run()


def as_command(deed: Callable[[], object]) -> None:
    """Do what no verb does, with the error and exit status that a verb would have."""
    try:
        told = deed()
    except MemworkerError as error:
        sys.stderr.write(f"memworker: {error}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps(told) + "\n")


def seemly(outcome: Outcome, allowed: tuple[int, ...]) -> Iterator[str]:
    """Check what every run must keep to: its exit status and what it may print."""
    for word in UNSEEMLY:
        if word in outcome.err or word in outcome.out:
            yield f"{word} was shown: {outcome.err[-1500:]}"
            return
    if "standard output" in outcome.err:
        yield f"standard output is blamed, and is whole: {outcome.err[-500:]}"
    if outcome.status not in (*allowed, KILLED):
        yield f"exit status {outcome.status}: {outcome.err[-500:]}"
    if outcome.status == 1:
        last = outcome.err.strip().splitlines()[-1:]
        if not last or not last[0].startswith("memworker: "):
            yield f"exit status 1 without a reason: {outcome.err!r}"


def tidy(folder: Path, outcome: Outcome) -> Iterator[str]:
    """Check that no temporary file is left, but for one that failed itself."""
    if outcome.killed or outcome.messy:
        return
    inside = watched(folder)
    stray = list((inside / "tmp").iterdir())
    stray += [path for path in inside.rglob("*") if path.suffix in (".tmp", ".part")]
    left = {str(path.relative_to(inside)) for path in stray} - set(outcome.failed)
    if left:
        yield f"files left behind: {sorted(left)}"


def all_rows(db: Path, table: str) -> Iterator[str | pa.Table]:
    """Read a table, every column; None where there is none. What cannot be read is yielded."""
    if not (db / f"{table}.lance").is_dir():
        return None
    try:
        return Table.open(db, table).rows()
    except TableNotFound:
        return None
    except Exception as error:
        yield f"the table cannot be read: {type(error).__name__}: {str(error)[:400]}"
        return None


def healthy(folder: Path) -> Iterator[str]:
    """Check every table in the database as `memworker table verify` does."""
    for name in table_names(database(folder)):
        try:
            damages = verify_table(database(folder), name).damages
        except TableNotFound:
            continue
        yield from (f"table {name} is damaged: {damage}" for damage in damages)


def forced(folder: Path, table: str, calls: Iterable[Called]) -> Iterator[str]:
    """Check that the newest version would survive a power loss now.

    Each of its files that was made or changed was forced to the disk after that, and so
    was each folder that got a name; and none is such that forcing it has failed once.
    """
    place = database(folder) / f"{table}.lance"
    files = [place / file for file in files_of(place, read_manifest(place, max(versions(place))))]
    written, named, synced, refused = _history(calls)
    for file in files:
        if _noted(file) in refused:
            yield f"acknowledged with {file}, for which an fsync had failed"
        if _noted(file) in written and not _after(synced, file, written[_noted(file)]):
            yield f"acknowledged, and {file} was not forced to the disk since it was written"
    for path in {*files, *(parent for file in files for parent in file.parents)}:
        if _noted(path) in named and not _after(synced, path.parent, named[_noted(path)]):
            yield f"acknowledged, and the name of {path} was not forced to the disk"


def _history(
    calls: Iterable[Called],
) -> tuple[dict[str, int], dict[str, int], dict[str, int], set[str]]:
    """Tell when each path was written to, got its name, was synced last; what could not be."""
    written: dict[str, int] = {}
    named: dict[str, int] = {}
    synced: dict[str, int] = {}
    refused = set()
    for at, call in enumerate(calls):
        if call.kind is Kind.FSYNC:
            synced[call.path] = at
        if call.outcome != WENT_WELL:
            refused |= {call.path} if call.kind is Kind.FSYNC else set()
        elif call.kind in (Kind.WRITE, Kind.TRUNCATE):
            written[call.path] = at
        elif call.kind in (Kind.RENAME, Kind.LINK, Kind.MKDIR):
            # A file that took this name has to be forced under it.
            named[call.path] = written[call.path] = at
    return written, named, synced, refused


def _after(synced: Mapping[str, int], path: Path, at: int) -> bool:
    return synced.get(_noted(path), -1) > at


def _noted(path: Path) -> str:
    """Return a path as the shim notes it: the end of one that is too long."""
    return os.fsdecode(os.fsencode(path)[-PATH_BYTES:])


def right(db: Path, oracle: Mapping[str, str], table: str = "t") -> Iterator[str]:
    """Check rows against the oracle, as far as they are there; give how many there are.

    Every page is read, and each vector must be its text's, made by the echo model.
    """
    rows = yield from all_rows(db, table)
    if rows is None:
        return 0
    ids, texts = rows["id"].to_pylist(), rows["text"].to_pylist()
    yield from unique(ids)
    there = dict(zip(ids, texts, strict=True))
    odd = [row for row, text in there.items() if oracle.get(row) != text]
    if odd:
        yield f"rows that are not the input's: {odd[:3]}"
    yield from echoed(rows)
    return len(there)


def unique(ids: list[str]) -> Iterator[str]:
    if len(set(ids)) != len(ids):
        yield f"{len(ids) - len(set(ids))} ids are there twice"


def echoed(rows: pa.Table) -> Iterator[str]:
    """Check that each vector is what the echo model gives for its text, as far as it tells."""
    vectors = vectors_of(rows)
    lengths = [len(text.encode()) for text in rows["text"].to_pylist()]
    if vectors[:, 1].tolist() != lengths or not (vectors[:, 0] == 1).all():
        yield "a vector is not its text's"


def vectors_of(rows: pa.Table) -> np.ndarray:
    flat = rows["vector"].combine_chunks().flatten().to_numpy()
    return flat.reshape(rows.num_rows, -1) if rows.num_rows else np.zeros((0, 2), np.float32)
