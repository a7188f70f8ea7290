"""What has been committed for which input: one checked line a step, appended after the step.

The journal lies in ``DB/.memworker/TABLE/journal.jsonl``. Nothing depends on
it for a row to be written once, that is the ids' work; it tells people what
was done, notices an input that was edited between two runs, and knows the
last good version of a table whose newest manifest was torn.

Each line is a JSON object that ends in ``"check":"<xxh3-64 of the rest>"``. A
line that was torn by a kill or a full disk fails its check and is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import msgspec
from xxhash import xxh3_64_hexdigest

from memworker.failpoints import write
from memworker.store.disk import disk_errors
from memworker.store.durable import sync_path

FILE = "journal.jsonl"
_CHECK = ',"check":"%s"}\n'
_CHECK_BYTES = len(_CHECK % ("0" * 16))
# Beyond this, only the last commit of each run is kept, of this many runs.
_CONDENSE_BYTES = 1 << 20
_CONDENSED_RUNS = 200
_UNTOUCHED = "Nothing was written to the table. Make room, or change the file's permissions"
_SAFE = "What was committed before is safe. Make room, and run the same command again to go on"


class InputFile(msgspec.Struct, frozen=True):
    """One input as a run found it; `digest` is taken over both its ends."""

    path: str
    size: int
    mtime_ns: int
    digest: str


class Started(msgspec.Struct, frozen=True, tag="started", tag_field="event"):
    """A run began. `job` is equal for runs of the same command on the same input names."""

    run: str
    at: str
    pid: int
    table: str | None
    job: str
    inputs: tuple[InputFile, ...]
    names: tuple[str, ...]
    model: str
    options: dict[str, str]
    version: int | None


class Committed(msgspec.Struct, frozen=True, tag="committed", tag_field="event"):
    """Rows were committed as `version`; all input rows before `position` are settled."""

    run: str
    at: str
    table: str
    version: int
    position: int
    written: int
    duplicates: int
    conflicts: int
    rejected: int


class Ended(msgspec.Struct, frozen=True, tag="ended", tag_field="event"):
    """A run came to its end: ``finished``, ``interrupted`` or ``failed``, and then why."""

    run: str
    at: str
    table: str | None
    outcome: str
    read: int
    written: int
    version: int | None
    why: str = ""


class Repaired(msgspec.Struct, frozen=True, tag="repaired", tag_field="event"):
    """A table was brought back from a damaged version to the one before."""

    at: str
    table: str
    damaged: tuple[int, ...]
    version: int


JournalRecord: TypeAlias = Started | Committed | Ended | Repaired

_decode = msgspec.json.Decoder(JournalRecord).decode


class Journal:
    """The journal of one table, open for appending; its one writer holds the job lock.

    `before` holds the records of earlier runs. A journal of another table of
    that name, dropped since, is begun afresh; so is one without any.
    """

    def __init__(self, folder: Path, identity: str | None, *, durable: bool = False) -> None:
        self._path = folder / FILE
        self._durable = durable
        self.before = self._prepare(identity)
        with disk_errors(self._path, _UNTOUCHED):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                for path in (self._path, folder, folder.parent, folder.parent.parent) * durable:
                    sync_path(path)
            except OSError:
                self.close()
                raise

    def append(self, record: JournalRecord) -> None:
        """Write one record. Raises StoreUnwritable, and leaves no half line, when it cannot."""
        with disk_errors(self._path, _SAFE):
            line, length = encode(record), os.fstat(self._fd).st_size
            try:
                write("mid_journal", self._fd, line)
                if self._durable:
                    os.fsync(self._fd)
            except OSError:
                # A line that stays torn is dropped by its check.
                with suppress(OSError):
                    os.ftruncate(self._fd, length)
                raise

    def close(self) -> None:
        # Nothing depends on the journal, and each line was written whole.
        with suppress(OSError):
            os.close(self._fd)
        # A late append must not write into a file that was given the same descriptor.
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, identity: str | None) -> tuple[JournalRecord, ...]:
        raw = _raw(self._path)
        records = decode(raw)
        if any(record.table not in (None, identity) for record in records):
            records = ()
        kept = condensed(records) if len(raw) > _CONDENSE_BYTES else records
        wanted = b"".join(map(encode, kept))
        if wanted != raw:
            _replace(self._path, wanted, durable=self._durable)
        return records


def read(folder: Path) -> tuple[JournalRecord, ...]:
    """Return the good records of a table's journal; empty when there is none."""
    return decode(_raw(folder / FILE))


def last_version(records: Iterable[JournalRecord], identity: str | None = None) -> int | None:
    """Return the newest version that a journal vouches for, of any table or of one."""
    versions = [
        record.version
        for record in records
        if record.version is not None and (identity is None or record.table == identity)
    ]
    return versions[-1] if versions else None


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode(record: JournalRecord) -> bytes:
    """Return a record's line."""
    body = msgspec.json.encode(record)
    return body[:-1] + (_CHECK % xxh3_64_hexdigest(body)).encode()


def decode(raw: bytes) -> tuple[JournalRecord, ...]:
    """Return the records of all lines whose check holds, in order."""
    found = (_decode_line(line) for line in raw.splitlines(keepends=True))
    return tuple(record for record in found if record is not None)


def condensed(records: Sequence[JournalRecord]) -> tuple[JournalRecord, ...]:
    """Keep of each run its start, its last commit and its end; of old runs nothing.

    What the inputs were is kept for the last run of a job, which the next one looks at.
    """
    last = {record.run: record for record in records if isinstance(record, Committed)}
    runs = [record.run for record in records if isinstance(record, Started)]
    recent = set(runs[-_CONDENSED_RUNS:])
    latest = {record.job: record.run for record in records if isinstance(record, Started)}
    return tuple(
        msgspec.structs.replace(record, inputs=())
        if isinstance(record, Started) and latest[record.job] != record.run
        else record
        for record in records
        if isinstance(record, Repaired)
        or (
            record.run in recent
            and (not isinstance(record, Committed) or last[record.run] is record)
        )
    )


def _raw(path: Path) -> bytes:
    with disk_errors(path, _UNTOUCHED, doing="read"):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""


def _decode_line(line: bytes) -> JournalRecord | None:
    body, check = line[:-_CHECK_BYTES] + b"}", line[-_CHECK_BYTES:]
    if check != (_CHECK % xxh3_64_hexdigest(body)).encode():
        return None
    try:
        record: JournalRecord = _decode(body)
    except msgspec.MsgspecError:
        # A later version's record: its check holds, but we cannot know what it says.
        return None
    return record


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    # One name, for there is one writer: what a kill leaves is overwritten the next time.
    temporary = path.with_name(f"{FILE}.tmp")
    with disk_errors(path, _UNTOUCHED):
        try:
            temporary.write_bytes(content)
            temporary.chmod(0o600)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
