"""Memories to JSON lines and back: ids, times, expiry and history stay, vectors are made anew.

::

    lines ─► checked one by one ─► known ids left out ─► pool ─► one commit a batch
                                   while the next batch is embedded
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from memworker.errors import MemworkerError, StoreError, UsageError
from memworker.json_lines import MAX_LINE_BYTES, object_of
from memworker.memory import rows
from memworker.memory.drafts import checked_text, metadata_json, moment
from memworker.memory.reads import checked_id
from memworker.memory.rows import NARROW, Row
from memworker.memory.scope import SCOPE_IDS, Scope
from memworker.memory.shapes import iso
from memworker.pool import Embedded, EmbeddingPool
from memworker.store import IdStatus, Table, dedup_keys

# Rows of one commit; with the batches in flight a few tens of megabytes.
BATCH_ROWS = 2048
# An index a column, and what follows from that.
_STEPS_OF_UPKEEP = 12
_TIMES = ("created_at", "updated_at", "expires_at", "superseded_at")
# What Mem0 tells besides of a memory follows from its text, or from a search.
_KNOWN = {"id", "memory", "metadata", *SCOPE_IDS, *_TIMES, "hash", "score", "event"}
_DIFFERING = (IdStatus.CONFLICT, IdStatus.ELSEWHERE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flaw:
    """A line that was not imported, counted from 1, and why."""

    line: int
    reason: str


@dataclass(slots=True)
class Imported:
    """What became of the lines of an import; `read` is all that were not blank.

    `skipped` have ids that are there already; `differing` is how many of those
    have another text, metadata or scope there, which was left as it is.
    """

    read: int = 0
    written: int = 0
    skipped: int = 0
    differing: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input that is a memory, without its vector."""

    number: int
    row: Row


def exported(table: Table, where: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Yield one JSON object a row, older versions and deleted ones too, without a line's end."""
    for batch in table.scan(where, columns=NARROW):
        for row in rows.read(pa.Table.from_batches([batch])):
            yield json.dumps(_object(row), ensure_ascii=False)


def is_export(path: Path) -> bool:
    """Tell whether a file is as `exported` makes one, to the last letter of every line."""
    try:
        with path.open("rb") as file:
            return all(map(_is_exported, iter(partial(file.readline, MAX_LINE_BYTES), b"")))
    except OSError:
        return False


def _is_exported(line: bytes) -> bool:
    try:
        text = line.decode()
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or not {"created_at", "updated_at"} <= value.keys():
        return False
    begins = list(value)[:3] == ["id", "memory", "metadata"]
    known = {"id", "memory", "metadata", *SCOPE_IDS, *_TIMES}
    return begins and value.keys() <= known and f"{json.dumps(value, ensure_ascii=False)}\n" == text


def import_lines(
    table: Table,
    pool: EmbeddingPool,
    lines: Iterable[str | bytes | Flaw],
    refused: Callable[[Flaw], None],
) -> Imported:
    """Write what `exported` gave, each row whose id is not there yet; tell of bad lines.

    A line that could not even be read is given as its Flaw.

    Every batch is committed by itself, and ids decide what is written: the same
    import again goes on where this one ended. A memory without created_at gets
    the time of its import. Raises StoreError, TableLocked, PoolError.
    """
    return _Import(table, pool, refused).run(lines)


class _Import:
    def __init__(self, table: Table, pool: EmbeddingPool, refused: Callable[[Flaw], None]) -> None:
        self._table, self._pool, self._tell = table, pool, refused
        self._done = Imported()

    def run(self, lines: Iterable[str | bytes | Flaw]) -> Imported:
        for batch, embedded in self._pool.stream(self._batches(lines), texts=_texts):
            self._commit(self._with_vectors(batch, embedded))
        if self._done.written:
            self._tend()
        return self._done

    def _batches(self, lines: Iterable[str | bytes | Flaw]) -> Iterator[list[Line]]:
        """Yield what must be embedded; a batch of which nothing must be needs no worker."""
        checked = self._checked(lines)
        while batch := list(islice(checked, BATCH_ROWS)):
            if unknown := self._unknown(batch):
                yield unknown

    def _checked(self, lines: Iterable[str | bytes | Flaw]) -> Iterator[Line]:
        now = datetime.now(UTC)
        for number, line in enumerate(lines, 1):
            if isinstance(line, Flaw):
                self._done.read += 1
                self._refuse(line.line, line.reason)
                continue
            if not line.strip():
                continue
            for value in self._objects(number, line):
                self._done.read += 1
                try:
                    yield Line(number, _row(value, self._pool.max_text_bytes, now))
                except MemworkerError as error:
                    self._refuse(number, str(error))

    def _objects(self, number: int, line: str | bytes) -> list[dict[str, Any]]:
        """Give a line's memories: one, or those of an answer of Mem0's, {"results": […]}."""
        try:
            value = object_of(line)
            found = value.get("results")
            if "memory" in value or not isinstance(found, list):
                return [value]
            if not all(isinstance(each, dict) for each in found):
                raise UsageError("its field 'results' holds something else than objects")
            return found
        except MemworkerError as error:
            self._done.read += 1
            self._refuse(number, str(error))
            return []

    def _unknown(self, batch: list[Line]) -> list[Line]:
        """Key the rows, and leave out those that need no vector as their ids are there."""
        keys = _keys([line.row for line in batch])
        keyed = [
            replace(line, row=replace(line.row, key=key))
            for line, key in zip(batch, keys.to_pylist(), strict=True)
        ]
        statuses = self._statuses(batch, keys)
        self._done.differing += sum(map(statuses.count, _DIFFERING))
        self._done.skipped += len(batch) - statuses.count(IdStatus.NEW)
        pairs = zip(keyed, statuses, strict=True)
        return [line for line, status in pairs if status == IdStatus.NEW]

    def _statuses(self, batch: list[Line], keys: pa.Array) -> list[int]:
        """Compare rows with the table, the scopes too: an id is one in all of it."""
        scopes = {
            name: pa.array([getattr(line.row.scope, name) for line in batch], pa.string())
            for name in SCOPE_IDS
        }
        metadata = pa.array([line.row.metadata_json for line in batch], pa.string())
        ids = [line.row.id for line in batch]
        statuses = self._table.classify(ids, keys, scopes=scopes, metadata=metadata)
        found: list[int] = statuses.tolist()
        return found

    def _commit(self, good: list[Row]) -> None:
        if not good:
            return
        appended = self._table.append(rows.build(good), on_conflict="skip")
        # Another process, or a line of the batch before, had some of the ids meanwhile.
        self._done.written += appended.written
        self._done.skipped += len(good) - appended.written
        self._done.differing += len(appended.conflicts)

    def _with_vectors(self, lines: list[Line], embedded: Embedded) -> list[Row]:
        failed = embedded.unstorable()
        for place in sorted(failed):
            self._refuse(lines[place].number, f"it could not be embedded: {failed[place]}")
        return [
            replace(line.row, vector=embedded.vectors[place])
            for place, line in enumerate(lines)
            if place not in failed
        ]

    def _tend(self) -> None:
        """Build what indices the table now deserves; one that fails costs no row, and no other."""
        for _ in range(_STEPS_OF_UPKEEP):
            try:
                if self._table.maintenance.tend().step is None:
                    return
            except StoreError as error:
                _log.warning("%s. `memworker table optimize` tries again.", error)

    def _refuse(self, number: int, reason: str) -> None:
        self._done.refused += 1
        self._tell(Flaw(number, reason))


def _texts(batch: list[Line]) -> list[str]:
    return [line.row.text for line in batch]


def _object(row: Row) -> dict[str, Any]:
    times = {name: getattr(row, name) for name in _TIMES}
    return {
        "id": row.id,
        "memory": row.text,
        "metadata": row.metadata if row.metadata_json else None,
        **row.scope.named(),
        **{name: iso(time) for name, time in times.items() if time is not None},
    }


def _row(value: dict[str, Any], max_text_bytes: int, now: datetime) -> Row:
    if "memory" not in value:
        raise UsageError("it has no field 'memory', which holds the text")
    ids = {name: None if value.get(name) == "" else value.get(name) for name in SCOPE_IDS}
    created = moment(value.get("created_at"), "created_at") or now
    return Row(
        id=checked_id(value.get("id")),
        key="",
        text=checked_text(value["memory"], max_text_bytes),
        vector=None,
        metadata_json=metadata_json(_metadata(value)),
        # Rows that were ingested may have no scope.
        scope=Scope.of(**ids) if any(v is not None for v in ids.values()) else Scope(),
        created_at=created,
        updated_at=moment(value.get("updated_at"), "updated_at") or created,
        expires_at=moment(value.get("expires_at")),
        superseded_at=moment(value.get("superseded_at"), "superseded_at"),
    )


def _metadata(value: dict[str, Any]) -> Any:
    """Give the metadata, with the fields for which a memory has no place, as Mem0 has some."""
    metadata = value.get("metadata")
    more = {k: v for k, v in value.items() if k not in _KNOWN and v is not None}
    if not more or not (metadata is None or isinstance(metadata, dict)):
        return metadata
    return more | (metadata or {})


def _keys(memories: list[Row]) -> pa.Array:
    columns = [[row.text for row in memories]]
    columns += [[getattr(row.scope, name) for row in memories] for name in SCOPE_IDS]
    return dedup_keys(*(pa.array(column, pa.string()) for column in columns))
