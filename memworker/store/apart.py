"""Work on a large table that changes no row, done in a child process, in little memory.

::

    parent: locks, retries, the look at what came      child: opens the table, does it, ends
       │  request, a line of JSON ───────────────────►   │
       │  the pipe stays open: the child's lifeline      │
       │  ◄───────────── nothing, or the errors, a line  │

LanceDB sorts and copies the vectors of a large table in memory that it does not give back,
some 800 MB at 500,000 rows of 384 dimensions. A child takes a third of that, for the settings
of its allocator and of LanceDB's buffers are read once, at the start, and cannot be ours; and
what it took is free when it ends. The parent holds the locks that are needed; the child holds
``apart`` alone, shared, so that a clean-up knows of it when the parent was killed first.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker import interpreters
from memworker.errors import MemworkerError, StoreError
from memworker.failpoints import reach
from memworker.paths import Place
from memworker.store import bounded, lock, places
from memworker.store.lance import connect, open_table
from memworker.store.spill import folder_beside

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_COLUMN_BYTES = {"text": 256}
_KEY_BYTES = 64
# A child costs about a second of start; below this that would be most of the work.
APART_BYTES = 64 * 2**20
_FOR_EVER = timedelta(days=36_500)
# One heap, whose pieces go back to the system; small buffers; few threads, each with its own.
_FRUGAL = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "LANCE_SHUFFLE_BATCH_BYTES": "16000000",
    "LANCE_DEFAULT_IO_BUFFER_SIZE": str(32 * 2**20),
    "LANCE_CPU_THREADS": "1",
    "LANCE_IO_THREADS": "2",
}
_CHILD_BYTES = 256 * 2**20
_HERE_BYTES = 64 * 2**20
_CACHE_BYTES = 8 * 2**20
# Where memory runs out all the same, the system ends the child rather than the job.
_FIRST_TO_GO = "500"
_PR_SET_PDEATHSIG = 1
_REPLY = b"memworker-done "
# So that a reply is written in one piece (PIPE_BUF).
_TEXT_CHARS = 600
_LAST_WORDS_CHARS = 300


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """Building an index; `kind` is the name of LanceDB's class for it.

    Unless it `replaces`, it is left alone where the column has one.
    """

    column: str
    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    replaces: bool = True

    def row_bytes(self, dim: int) -> int:
        """Estimate how many bytes of a row are read and sorted."""
        return 4 * dim if self.column == "vector" else _COLUMN_BYTES.get(self.column, _KEY_BYTES)

    def do(self, handle: LanceTable) -> None:
        """Build the index, and commit it."""
        import lancedb.index

        # Another process may have come first: its index is as good.
        if self.replaces or not has_index(handle, self.column):
            config = getattr(lancedb.index, self.kind)(**self.options)
            handle.create_index(self.column, name=self.name, replace=self.replaces, config=config)


@dataclass(frozen=True, slots=True)
class Compaction:
    """Writing small fragments as large ones, and indices that cover all rows."""

    def row_bytes(self, dim: int) -> int:
        """Estimate how many bytes of a row are read and written."""
        return 4 * dim

    def do(self, handle: LanceTable) -> None:
        """Compact, and commit that; older versions stay."""
        handle.optimize(cleanup_older_than=_FOR_EVER)


ApartWork = IndexBuild | Compaction


class ChildEnded(RuntimeError):
    """The process that did the work ended before it had said how that went."""


class _InChild(RuntimeError):
    """An error of the child, raised again here: a subclass by the name that it had there."""


def has_index(table: LanceTable, column: str) -> bool:
    """Tell whether a column is indexed, wholly or in part."""
    return any(index.columns == [column] for index in table.list_indices())


def work_bytes(work: ApartWork, table: LanceTable) -> int:
    """Estimate how many bytes of a table some work reads."""
    dim = int(table.schema.field("vector").type.list_size)
    return int(table.count_rows()) * work.row_bytes(dim)


def is_large(work: ApartWork, table: LanceTable) -> bool:
    """Tell whether work on a table is worth a process."""
    return work_bytes(work, table) >= APART_BYTES


def built_apart(rows: float, dim: int) -> bool:
    """Tell whether the vector index of so many rows is built in a child."""
    return rows * 4 * dim >= APART_BYTES


def index_bytes(rows: int, dim: int) -> int:
    """Estimate what building the vector index takes of memory, beside what there is of the table.

    Measured for 384 dimensions: 307 MB in a child at 500,000 rows, 339 at 3 million; in this
    process up to three times the vectors.
    """
    vectors = rows * 4 * dim
    if vectors < APART_BYTES:
        return _HERE_BYTES + 2 * vectors
    # LanceDB learns a partition of 8,192 rows from some of them, in copies.
    return _CHILD_BYTES + vectors // 32


def run(work: ApartWork, db: Place, name: str, state: Path) -> None:
    """Do `work` in a child, which ends with this call. `state`: see `lock.state_dir`.

    Raises what was raised there, by name and text; ChildEnded.
    """
    asked = [os.getpid(), places.as_json(db), name, type(work).__name__, asdict(work)]
    request = json.dumps(asked)
    with folder_beside(state) as temporary, _started(temporary) as child:
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError):  # it has ended; why, is told below
            child.stdin.write(request.encode() + b"\n")
            child.stdin.flush()
        said: list[bytes] = []
        for line in _lines(child):
            if line.startswith(_REPLY):
                _raise(json.loads(line.removeprefix(_REPLY)))
                return
            # LanceDB warns of empty partitions and the like, which ends no process.
            said = said if b" WARN " in line else [*said[-4:], line]
        raise ChildEnded(_end(child.pid, child.wait(), said))


def _lines(child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield a child's output, line by line. Raises ChildEnded when it does nothing for long."""
    assert child.stdout is not None
    fd, rest = child.stdout.fileno(), b""

    def said(timeout_s: float) -> bool:
        return bool(select.select([fd], [], [], timeout_s)[0])

    while True:
        try:
            bounded.await_end(said, bounded.work_of(child.pid))
        except bounded.Stalled as stalled:
            raise ChildEnded(
                f"the process that did it (pid {child.pid}) did nothing any more ({stalled}) and"
                " was ended"
            ) from stalled
        block = os.read(fd, 65_536)
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
        if not block:
            yield rest
            return


@contextmanager
def _started(temporary: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    settings = _FRUGAL | ({"TMPDIR": str(temporary)} if temporary else {})
    child = subprocess.Popen(
        interpreters.command("from memworker.store import apart\napart.main()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=interpreters.environment(**settings),
        # Ctrl-C in a terminal is for the parent, which decides what becomes of the child.
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None and child.stdout is not None
        child.stdout.close()
        with suppress(BrokenPipeError):
            child.stdin.close()


def _raise(errors: list[list[str]] | str | None) -> None:
    if isinstance(errors, str):
        raise StoreError(errors)
    found: BaseException | None = None
    for name, text in reversed(errors or []):
        error = type(name, (_InChild,), {})(text)
        error.__cause__, found = found, error
    if found is not None:
        raise found


def _end(pid: int, code: int, said: list[bytes]) -> str:
    if code < 0:
        hint = ", likely out of memory" if code == -signal.SIGKILL else ""
        how = f"was killed by {signal.Signals(-code).name}{hint}"
    else:
        how = f"ended with exit status {code}"
    words = " ".join(b"".join(said).decode(errors="replace").split())[-_LAST_WORDS_CHARS:]
    return f"the process that did it (pid {pid}) {how}{f', after: {words}' if words else ''}"


# ── in the child ──


def main() -> None:
    """Do the work described by the first line of standard input; write the outcome as JSON."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    parent, *request = json.loads(line)
    _end_with(parent)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    os.write(1, b"\n" + _REPLY + json.dumps(_done(*request)).encode() + b"\n")
    # Nothing is left to be written, and LanceDB's threads need not be waited for.
    os._exit(0)


def _done(
    place: str | tuple[str, dict[str, str]], name: str, kind: str, options: dict[str, Any]
) -> list[list[str]] | str | None:
    try:
        db = places.from_json(place)
        connection = connect(
            db,
            writable=False,
            index_cache_bytes=_CACHE_BYTES,
            metadata_cache_bytes=_CACHE_BYTES,
        )
        handle = open_table(connection, db, name)
        with lock.hold(lock.state_dir(db, name), "apart", shared=True):
            reach("apart_before")
            {work.__name__: work for work in (IndexBuild, Compaction)}[kind](**options).do(handle)
            reach("apart_after")
        return None
    except MemworkerError as error:
        return str(error)[: 3 * _TEXT_CHARS]
    except BaseException as error:  # raised again in the parent
        return _chain(error)


def _chain(error: BaseException | None) -> list[list[str]]:
    chain: list[list[str]] = []
    while error is not None and len(chain) < 3:
        chain.append([type(error).__name__, str(error)[:_TEXT_CHARS]])
        error = error.__cause__
    return chain


def _end_with(parent: int) -> None:
    """End when the parent does: without it, nothing may be committed any more."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with suppress(OSError, AttributeError):
        # Linux ends us when the thread that started us ends, which waits; stopped or not.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
