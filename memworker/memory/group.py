"""Operations that meet in one commit, applied one after the other as if each were alone.

::

    operations ─► look up what they name ─► overlay: each sees what those before it did
               ─► rows inserted and replaced ─► one commit
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import uuid_utils

from memworker import values
from memworker.errors import MemoryNotFound, MemworkerError, TextFailed
from memworker.memory import rows as row_batches
from memworker.memory.drafts import Batch, Draft, OnDuplicate
from memworker.memory.history import version_id, versions_of
from memworker.memory.known import KnownKeys
from memworker.memory.rows import NARROW, WIDE, Row, Vector
from memworker.memory.scope import Scope
from memworker.pool import Embedded
from memworker.store import Change, Edit, Table, keys_of_texts

Event = Literal["ADD", "UPDATE", "NONE"]
OperationResult: TypeAlias = Any

_TICK = timedelta(microseconds=1)


class Operation(Protocol):
    """A member of a group: names what to look up, then acts on the overlay."""

    def ids(self) -> Iterable[str]: ...
    def keys(self) -> Iterable[str]: ...
    def apply(self, overlay: Overlay) -> OperationResult: ...


@dataclass(frozen=True, slots=True)
class Add:
    """Add memories of one scope; the outcome is (Event, Row) a memory."""

    scope: Scope
    drafts: Sequence[Draft]
    vectors: Sequence[Vector]
    dedup: Sequence[str]
    on_duplicate: OnDuplicate

    def ids(self) -> Iterable[str]:
        return ()

    def keys(self) -> Iterable[str]:
        return () if self.on_duplicate == "allow" else self.dedup

    def apply(self, overlay: Overlay) -> list[tuple[Event, Row]]:
        triples = zip(self.drafts, self.vectors, self.dedup, strict=True)
        return [self._one(overlay, *triple) for triple in triples]

    def _one(self, overlay: Overlay, draft: Draft, vector: Vector, key: str) -> tuple[Event, Row]:
        there = None if self.on_duplicate == "allow" else overlay.with_key(key)
        if there is None:
            return "ADD", overlay.add(draft, vector, key, self.scope)
        if self.on_duplicate == "skip":
            return "NONE", there
        metadata = there.metadata_json if draft.metadata_json is None else draft.metadata_json
        expires = draft.expires_at or there.expires_at
        # Equal text, so the vector just made is the row's own, which was not read.
        new = replace(there, vector=vector, metadata_json=metadata, expires_at=expires)
        return "UPDATE", overlay.supersede(replace(there, vector=vector), new)


@dataclass(frozen=True, slots=True)
class Update:
    """Give a memory another text with its vector, other metadata, or both; the outcome is its Row.

    What is None stays. `merge` keeps the metadata's fields that the new ones do not name.
    """

    id: str
    metadata_json: str | None
    merge: bool
    text: str | None = None
    vector: Vector | None = None

    def ids(self) -> Iterable[str]:
        return (self.id,)

    def keys(self) -> Iterable[str]:
        return ()

    def apply(self, overlay: Overlay) -> Row:
        old = overlay.visible(self.id)
        new = replace(old, metadata_json=self._metadata(old))
        if self.text is not None:
            (key,) = keys_of([self.text], old.scope)
            new = replace(new, text=self.text, key=key, vector=self.vector)
        return overlay.supersede(old, new)

    def _metadata(self, old: Row) -> str | None:
        if self.metadata_json is None or not self.merge:
            return self.metadata_json or old.metadata_json
        return values.json_text({**old.metadata, **json.loads(self.metadata_json)})


@dataclass(frozen=True, slots=True)
class Delete:
    """Supersede a memory, so that it shows in its history only."""

    id: str

    def ids(self) -> Iterable[str]:
        return (self.id,)

    def keys(self) -> Iterable[str]:
        return ()

    def apply(self, overlay: Overlay) -> None:
        overlay.retire(overlay.visible(self.id))


@dataclass(frozen=True, slots=True)
class Sweep:
    """Delete the visible rows that meet a filter, or erase all rows that do; committed alone."""

    where: Mapping[str, Any]
    erase: bool

    def run(self, edit: Edit) -> int:
        if self.erase:
            return edit.erase(self.where)
        living = {"AND": [self.where, {"superseded_at": None}]}
        return edit.set(living, {"superseded_at": datetime.now(UTC)})


@dataclass(frozen=True, slots=True)
class EraseOne:
    """Erase a memory and its history for good."""

    id: str

    def run(self, edit: Edit) -> int:
        erased = edit.erase(versions_of(self.id))
        if not erased:
            raise not_found_error(self.id)
        return erased


Alone: TypeAlias = Sweep | EraseOne


class Overlay:
    """The memories that a group names, as they stand after the operations so far."""

    def __init__(self, found: Iterable[Row]) -> None:
        self.inserted: dict[str, Row] = {}
        self.replaced: dict[str, Row] = {}
        self._now = datetime.now(UTC)
        self._visible: dict[str, Row] = {}
        self._by_key: dict[str, set[str]] = {}
        for row in found:
            self._enter(row)

    def visible(self, memory_id: str) -> Row:
        """Return the visible memory of this id. Raises MemoryNotFound."""
        if memory_id not in self._visible:
            raise not_found_error(memory_id)
        return self._visible[memory_id]

    def with_key(self, key: str) -> Row | None:
        """Return the oldest memory of this scope and text, if there is one."""
        rows = (self._visible[row_id] for row_id in self._by_key.get(key, ()))
        return min(rows, key=lambda row: (row.created_at, row.id), default=None)

    def add(self, draft: Draft, vector: Vector, key: str, scope: Scope) -> Row:
        """Put a new memory."""
        row = Row(
            id=str(uuid_utils.uuid7()),
            key=key,
            text=draft.text,
            vector=vector,
            metadata_json=draft.metadata_json,
            scope=scope,
            created_at=self._now,
            updated_at=self._now,
            expires_at=draft.expires_at,
        )
        self.inserted[row.id] = row
        return self._enter(row)

    def supersede(self, old: Row, new: Row) -> Row:
        """Put `new` in the place of `old`, which is kept as an older version."""
        now = self._after(old)
        version = replace(old, id=version_id(old.id), superseded_at=now)
        self.inserted[version.id] = version
        self._leave(old)
        return self._enter(self._written(replace(new, updated_at=now)))

    def retire(self, old: Row) -> None:
        """Supersede a memory without a successor: it is deleted."""
        self._leave(old)
        self._written(replace(old, superseded_at=self._after(old)))

    def _after(self, row: Row) -> datetime:
        # Versions of one memory sort by their times, whatever the clock has done meanwhile.
        return max(self._now, row.updated_at + _TICK)

    def _written(self, row: Row) -> Row:
        (self.inserted if row.id in self.inserted else self.replaced)[row.id] = row
        return row

    def _enter(self, row: Row) -> Row:
        self._visible[row.id] = row
        self._by_key.setdefault(row.key, set()).add(row.id)
        return row

    def _leave(self, row: Row) -> None:
        del self._visible[row.id]
        self._by_key[row.key].discard(row.id)


def commit(
    table: Table, known: KnownKeys, operations: Sequence[Operation]
) -> list[OperationResult | MemworkerError]:
    """Apply operations in their order and commit the whole at once; an outcome each.

    What an operation raises is its own outcome. Raises StoreError and TableLocked
    when the commit failed: then nothing of any was written.
    """
    with table.changing() as change:
        before = change.version
        overlay = Overlay(_found(change, known, operations))
        outcomes = [_outcome(partial(one.apply, overlay)) for one in operations]
        # Each id is in one of the two, as the overlay last left it: a change takes an id once.
        if overlay.inserted:
            change.insert(row_batches.build(list(overlay.inserted.values())))
        if overlay.replaced:
            change.replace(row_batches.build(list(overlay.replaced.values())))
    written = [*overlay.inserted.values(), *overlay.replaced.values()]
    known.committed(before, change.version, [row.key for row in written])
    return outcomes


def commit_alone(
    table: Table, known: KnownKeys, operation: Alone
) -> OperationResult | MemworkerError:
    """Carry out an operation on all rows that meet a filter."""
    with table.editing() as edit:
        before = edit.version
        outcome = _outcome(partial(operation.run, edit))
    known.committed(before, edit.version, [])
    return outcome


def adding(batch: Batch, embedded: Embedded) -> tuple[Batch, Add]:
    """Join drafts and vectors; a draft without a usable vector becomes a flaw of the batch."""
    failed = embedded.unstorable()
    good = [row for row in range(len(batch.drafts)) if row not in failed]
    drafts = [batch.drafts[row] for row in good]
    vectors = [embedded.vectors[row] for row in good]
    flaws = {
        batch.places[row]: _failed_error(why, batch.places[row]) for row, why in failed.items()
    }
    places = [batch.places[row] for row in good]
    cut = frozenset(batch.places[row] for row in good if embedded.truncated[row])
    left = replace(batch, drafts=drafts, places=places, flaws=batch.flaws | flaws, cut=cut)
    keys = keys_of([draft.text for draft in drafts], batch.scope)
    return left, Add(batch.scope, drafts, vectors, keys, batch.on_duplicate)


def one_vector(embedded: Embedded) -> Vector:
    """Return float32[dim] of one embedded memory. Raises TextFailed."""
    for reason in embedded.unstorable().values():
        raise _failed_error(reason, 0)
    vector: Vector = embedded.vectors[0]
    return vector


def keys_of(texts: Sequence[str], scope: Scope) -> list[str]:
    """Return what tells memories apart: a hash of scope and text."""
    return keys_of_texts(texts, scope.user_id, scope.agent_id, scope.run_id)


def not_found_error(memory_id: str) -> MemoryNotFound:
    """Say that no memory has this id."""
    return MemoryNotFound(
        f"there is no memory {memory_id!r}: it never was, it was deleted, or it has expired."
        " Ids are given by search(), get_all() and `memworker memory list`."
    )


def _outcome(deed: Callable[[], OperationResult]) -> OperationResult | MemworkerError:
    try:
        return deed()
    except MemoryNotFound as error:
        return error


def _failed_error(reason: str, place: int) -> TextFailed:
    return TextFailed(f"the text could not be embedded: {reason}", place)


def _found(change: Change, known: KnownKeys, operations: Sequence[Operation]) -> list[Row]:
    ids = list({one for operation in operations for one in operation.ids()})
    keys = list({key for operation in operations for key in operation.keys()})
    by_key = _look_up(change, "dedup_key", known.possible(change, keys), NARROW)
    by_id = _look_up(change, "id", ids, WIDE)
    # Last the ones with vectors: a row may be found by both.
    return list({row.id: row for row in [*by_key, *by_id]}.values())


def _look_up(
    change: Change, column: Literal["id", "dedup_key"], values: list[str], columns: Sequence[str]
) -> list[Row]:
    if not values:
        return []
    return row_batches.read(change.find(column, values, columns=columns, visible_only=True))
