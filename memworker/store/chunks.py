"""The chunks of texts: compared with those that are there, and replaced in one commit.

::

    all chunks of some texts ─► compared with the rows of the same parents
                                  new: written     at another place: their vectors stay
                                  gone: deleted    as they are: not touched

A chunk's id follows from its text and its parent, so a text that was edited differs from what
is there only where it was edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import UsageError
from memworker.failpoints import reach
from memworker.store import read
from memworker.store.claims import same_metadata
from memworker.store.commit import OnConflict
from memworker.store.filters import id_in
from memworker.store.keys import string_array
from memworker.store.known import IdStatus
from memworker.store.lance import lance_errors
from memworker.store.schema import SCOPES, conform, refuse_bad_vectors, widen
from memworker.store.sync import PLACE_COLUMNS, KnownRows, places_of
from memworker.store.writes import Landed, Writes

if TYPE_CHECKING:
    from lancedb.table import LanceTable

Mask = npt.NDArray[np.bool_]
_PLACE = ["parent_id", "chunk"]
_COMPARED = ("id", *PLACE_COLUMNS, *SCOPES, "metadata")


class TextStatus(IntEnum):
    """What a table knows of a text that is given as its chunks."""

    NEW = 0
    SAME = 1
    CHANGED = 2
    """Its parent has other chunks, or they stand elsewhere in it, or with other metadata."""
    ELSEWHERE = 3
    """Its parent is of another scope."""


@dataclass(frozen=True, slots=True)
class ChunksThere:
    """Of n texts the status of each, and of their chunks which have no row, and so no vector."""

    texts: npt.NDArray[np.uint8]
    unknown: Mask


@dataclass(frozen=True, slots=True)
class Replaced:
    """What `replace_chunks` did, in chunks.

    `conflicts`, `elsewhere` and `incomplete` are parents that were left out: those that are
    there with other chunks, unless they are to be updated; those of another scope; and those of
    which a chunk without a vector is not there any more.
    """

    written: int = 0
    moved: int = 0
    removed: int = 0
    kept: int = 0
    conflicts: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    version: int = 0


@dataclass(slots=True)
class _Fates:
    """The fate of each row, and of those in the table; `there` are the latter."""

    there: pa.Table
    write: list[int] = field(default_factory=list)
    move: list[int] = field(default_factory=list)
    kept: int = 0
    gone: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)


class ChunkWriter:
    """Compares and replaces the chunks of one table. The caller holds the locks."""

    def __init__(self, writes: Writes, known: KnownRows) -> None:
        self._writes, self._handle, self._known = writes, writes.handle, known

    def compare(self, rows: pa.Table, texts: npt.NDArray[np.int64]) -> ChunksThere:
        """Hold chunks against the newest version; `texts` int64[n] numbers the text of each."""
        count = int(texts[-1]) + 1 if len(texts) else 0
        parents = string_array(rows["parent_id"])
        unknown = np.ones(len(texts), np.bool_)
        if self._known.spared(len(pc.unique(parents))):
            status = np.full(count, TextStatus.NEW, np.uint8)
            self._look_closer(rows, texts, np.arange(count), status, unknown)
            return ChunksThere(status, unknown)
        known = self._known.refresh(self._handle)
        ids, keys = string_array(rows["id"]), string_array(rows["dedup_key"])
        metadata, places = rows["metadata"], places_of(rows)
        as_known = known.find(*known.hash(ids, keys, metadata, places)) == IdStatus.DUPLICATE
        unknown[as_known] = False
        differs = np.bincount(texts[unknown], minlength=count) > 0
        maybe = np.zeros(count, np.bool_)
        maybe[texts[known.has_chunks_of(parents)]] = True
        status = np.where(differs, TextStatus.NEW, TextStatus.SAME).astype(np.uint8)
        unknown |= ~maybe[texts]
        self._look_closer(rows, texts, np.flatnonzero(differs & maybe), status, unknown)
        return ChunksThere(status, unknown)

    def replace(self, rows: pa.Table, gone: Sequence[str], policy: OnConflict) -> Replaced:
        """Make `rows` all the chunks there are of their parents, and of `gone` none.

        In one commit. The vector of a chunk that is there already may be null.
        """
        rows = _checked(rows, self._writes.table.space.dim)
        parents = list(dict.fromkeys([*rows["parent_id"].to_pylist(), *gone]))
        seen = int(self._handle.version)
        plan = self._plan(rows, parents, policy)
        if int(self._handle.version) != seen:
            # A writer that does not take our lock.
            seen = int(self._handle.version)
            plan = self._plan(rows, parents, policy)
        if not (plan.write or plan.move or plan.gone):
            return _outcome(plan, seen)
        source = pa.concat_tables(
            [rows.take(pa.array(plan.write, pa.int64())), self._moved(rows, plan)]
        )
        source = widen(source, self._handle.schema)
        write = self._write(source, plan)
        reach("before_add")
        landed = self._writes.commit(
            f"replacing chunks of table {self._handle.name!r}",
            write,
            partial(self._came, source, plan.gone),
            seen=seen,
            spills=plan.there.num_rows > 0,
        )
        reach("after_add")
        removed = plan.there.filter(pc.is_in(plan.there["id"], pa.array(plan.gone, pa.string())))
        self._known.replaced(landed.version, source, removed, moved=len(plan.move))
        return _outcome(plan, landed.version)

    def _look_closer(
        self,
        rows: pa.Table,
        texts: npt.NDArray[np.int64],
        which: npt.NDArray[np.int64],
        status: npt.NDArray[np.uint8],
        unknown: Mask,
    ) -> None:
        """Settle the texts whose parents may be there, by what is there."""
        if not len(which):
            return
        places = np.flatnonzero(np.isin(texts, which))
        given = _listed(rows.take(places))
        there = _by_parent(self._rows_of({row["parent_id"] for row in given}))
        by_text: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for at, row in zip(places.tolist(), given, strict=True):
            by_text.setdefault(int(texts[at]), []).append((at, row))
        for text, mine in by_text.items():
            theirs = there.get(mine[0][1]["parent_id"], {})
            for at, row in mine:
                unknown[at] = row["id"] not in theirs
            status[text] = _status([row for _, row in mine], theirs)

    def _plan(self, rows: pa.Table, parents: list[str], policy: OnConflict) -> _Fates:
        found = self._rows_of(self._perhaps_there(parents))
        there, plan = _by_parent(found), _Fates(found)
        has_vector = rows["vector"].is_valid().to_pylist()
        given: dict[str, list[tuple[int, dict[str, Any]]]] = {parent: [] for parent in parents}
        for at, row in enumerate(_listed(rows)):
            given[row["parent_id"]].append((at, row))
        for parent, mine in given.items():
            theirs = there.get(parent, {})
            status = _status([row for _, row in mine], theirs) if mine else TextStatus.CHANGED
            why = _refused(status, bool(mine), policy)
            if not why and any(not has_vector[at] and r["id"] not in theirs for at, r in mine):
                why = "incomplete"
            if why:
                plan.left_out.setdefault(why, []).append(parent)
                continue
            _settle(plan, mine, theirs)
        return plan

    def _perhaps_there(self, parents: list[str]) -> set[str]:
        """Give those of which there may be chunks."""
        if self._known.spared(len(parents)):
            return set(parents)
        known = self._known.refresh(self._handle)
        some = known.has_chunks_of(pa.array(parents, pa.string()))
        return {parents[at] for at in np.flatnonzero(some)}

    def _rows_of(self, parents: set[str]) -> pa.Table:
        with lance_errors(f"looking up chunks of table {self._handle.name!r}"):
            columns = [*_COMPARED, "dedup_key", "created_at", "updated_at"]
            return read.find(self._handle, "parent_id", sorted(parents), columns=columns)

    def _moved(self, rows: pa.Table, plan: _Fates) -> pa.Table:
        """Give the rows whose place has changed, with the vectors that they have."""
        moved = rows.take(pa.array(plan.move, pa.int64()))
        if not plan.move:
            return moved
        ids = moved["id"].to_pylist()
        there = read.find(self._handle, "id", ids, columns=["id", "vector", "created_at"])
        at = pc.index_in(moved["id"], string_array(there["id"]))
        for name in ("vector", "created_at"):
            place = moved.schema.get_field_index(name)
            column = there[name].take(at).cast(moved.schema.field(place).type)
            moved = moved.set_column(place, moved.schema.field(place), column)
        return moved

    def _write(self, source: pa.Table, plan: _Fates) -> Any:
        """Choose how to commit: what goes away without another in its place is the dear case.

        For LanceDB then reads the whole table: 2 to 7 s at a million rows, where the others
        take a tenth of one.
        """
        if not plan.there.num_rows:
            return self._add(source)
        if not source.num_rows:
            return self._delete(plan.gone)
        if _each_has_a_successor(source, plan):
            return self._merge(source, _PLACE, [])
        return self._merge(source, ["id"], plan.gone)

    def _delete(self, gone: list[str]) -> Any:
        def delete() -> Landed:
            return Landed(int(self._handle.delete(id_in(gone)).version), 0)

        return delete

    def _add(self, source: pa.Table) -> Any:
        def add() -> Landed:
            return Landed(int(self._handle.add(source).version), source.num_rows)

        return add

    def _merge(self, source: pa.Table, by: list[str], gone: list[str]) -> Any:
        merge = self._handle.merge_insert(by).when_matched_update_all()
        merge = merge.when_not_matched_insert_all()
        if gone:
            merge = merge.when_not_matched_by_source_delete(id_in(gone))
        merge = merge.use_index(False)

        def execute() -> Landed:
            return Landed(int(merge.execute(source).version), source.num_rows)

        return execute

    def _came(self, source: pa.Table, gone: list[str], seen: int) -> Landed | None:
        """Return the commit of a write that raised if it has all come, else None."""
        names = ["id", *PLACE_COLUMNS, "updated_at"]
        found = _find(self._handle, [*source["id"].to_pylist(), *gone], names)
        wanted = source.select(names)
        if found.num_rows != wanted.num_rows:
            return None
        wanted, found = (part.sort_by("id") for part in (wanted, found))
        if any(a.to_pylist() != b.to_pylist() for a, b in zip(wanted, found, strict=True)):
            return None
        return Landed(int(self._handle.version), source.num_rows)


def _each_has_a_successor(source: pa.Table, plan: _Fates) -> bool:
    """Tell whether every row that goes or moves is replaced by the one that takes its place.

    So it is unless a text has fewer chunks than before.
    """
    taken = list(_places(source))
    left, gone = set[str]([*plan.gone, *source["id"].to_pylist()]), list[tuple[Any, ...]]()
    kept = set[tuple[Any, ...]]()
    for row_id, place in zip(plan.there["id"].to_pylist(), _places(plan.there), strict=True):
        if row_id in left:
            gone.append(place)
        else:
            kept.add(place)
    new = set(taken)
    alone = len(new) == len(taken) and len(set(gone)) == len(gone)
    return alone and new.issuperset(gone) and new.isdisjoint(kept)


def _places(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in _PLACE), strict=True)


def _outcome(plan: _Fates, version: int) -> Replaced:
    changed, elsewhere, incomplete = (
        tuple(plan.left_out.get(why, ())) for why in ("changed", "elsewhere", "incomplete")
    )
    return Replaced(
        written=len(plan.write),
        moved=len(plan.move),
        removed=len(plan.gone),
        kept=plan.kept,
        conflicts=changed,
        elsewhere=elsewhere,
        incomplete=incomplete,
        version=version,
    )


def _find(handle: LanceTable, ids: list[str], columns: list[str]) -> pa.Table:
    return read.find(handle, "id", ids, columns=columns)


def _checked(rows: pa.Table, dim: int) -> pa.Table:
    rows = conform(rows, dim, chunks=True)
    missing = [name for name in PLACE_COLUMNS if rows[name].null_count]
    if missing:
        raise UsageError(f"a chunk needs {', '.join(missing)}")
    ids = rows["id"]
    if len(pc.unique(ids)) != rows.num_rows:
        raise UsageError("two chunks have one id; give each text once")
    refuse_bad_vectors(rows.filter(rows["vector"].is_valid()), dim)
    return rows


def _listed(rows: pa.Table) -> list[dict[str, Any]]:
    compared = rows.select(list(_COMPARED))
    place = compared.schema.get_field_index("metadata")
    compared = compared.set_column(place, "metadata", compared["metadata"].cast(pa.string()))
    found: list[dict[str, Any]] = compared.to_pylist()
    return found


def _by_parent(rows: pa.Table) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in _listed(rows):
        found.setdefault(row["parent_id"], {})[row["id"]] = row
    return found


def _status(mine: list[dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> TextStatus:
    if not theirs:
        return TextStatus.NEW
    scope = [mine[0][name] for name in SCOPES]
    if any([row[name] for name in SCOPES] != scope for row in theirs.values()):
        return TextStatus.ELSEWHERE
    there = len(mine) == len(theirs) and all(
        row["id"] in theirs and _same(row, theirs[row["id"]]) for row in mine
    )
    return TextStatus.SAME if there else TextStatus.CHANGED


def _same(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    placed = all(mine[name] == theirs[name] for name in PLACE_COLUMNS)
    return placed and same_metadata(mine["metadata"], theirs["metadata"])


def _refused(status: TextStatus, given: bool, policy: OnConflict) -> str:
    if status is TextStatus.ELSEWHERE:
        return "elsewhere"
    if status is TextStatus.CHANGED and given and policy is not OnConflict.UPDATE:
        return "changed"
    return ""


def _settle(
    plan: _Fates, mine: list[tuple[int, dict[str, Any]]], theirs: dict[str, dict[str, Any]]
) -> None:
    for at, row in mine:
        before = theirs.get(row["id"])
        if before is None:
            plan.write.append(at)
        elif _same(row, before):
            plan.kept += 1
        else:
            plan.move.append(at)
    ids = {row["id"] for _, row in mine}
    plan.gone += [row_id for row_id in theirs if row_id not in ids]
