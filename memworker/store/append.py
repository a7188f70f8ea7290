"""Appending rows whose ids may be known: left out, updated, or written, in one commit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.failpoints import reach
from memworker.store import commit, read
from memworker.store.claims import Claims, HeldRow, claims_of, held
from memworker.store.commit import Appended, OnConflict, Plan
from memworker.store.filters import id_in
from memworker.store.keys import string_array
from memworker.store.known import IdStatus, Statuses
from memworker.store.schema import widen
from memworker.store.sync import KnownRows
from memworker.store.writes import Landed, Write, Writes

# One row a delete takes 13 ms a row; a long chain of ORs is a deep tree to the planner.
_DELETE_ROWS = 64


class Appender:
    """Writes batches into one table, and knows which ids are there. The caller holds the locks."""

    def __init__(self, writes: Writes) -> None:
        self.known = KnownRows(writes.table.state)
        self._writes, self._handle = writes, writes.handle

    def append(self, rows: pa.Table, policy: OnConflict) -> Appended:
        """Write in one commit the new ones of `rows`, and with `update` those that conflict."""
        seen = self._handle.version
        plan = self.plan(rows, policy)
        if not len(plan.write) and not len(plan.update):
            return _outcome(plan, policy, seen)
        # A writer that moves the version now does not take our lock: let LanceDB compare the ids.
        moved = self._handle.version != seen
        if moved:
            plan = self.plan(rows, policy)
            seen = self._handle.version
        merges = moved or len(plan.update) > 0
        write = self._merge(rows, plan) if merges else self._add(rows, plan)
        doing = f"appending to table {self._handle.name!r}"
        came = partial(self._came, rows, plan)
        landed = self._writes.commit(doing, write, came, seen=seen, spills=merges)
        reach("after_add")
        version, written = landed.version, landed.rows
        if not merges and version != seen + 1:
            written -= self.drop_doubles(_take(rows, plan.write)["id"])
            version = self._handle.version
        chosen = np.concatenate([plan.write, plan.update])
        self.known.committed(version, plan.keys[chosen], plan.records[chosen])
        return _outcome(plan, policy, version, written)

    def classify(self, claims: Claims, *, newest: bool = True) -> Statuses:
        """Return an IdStatus a row against the newest version, or the first that was read."""
        known = self.known.refresh(self._handle) if newest else self.known.as_read(self._handle)
        hashes = known.hash(claims.ids, claims.keys, claims.metadata)
        return commit.classify(claims, known, self._held, hashes=hashes)[0]

    def plan(self, rows: pa.Table, policy: OnConflict) -> Plan:
        """Decide the fate of each row against the newest version."""
        known = self.known.refresh(self._handle)
        return commit.plan(rows, known, self._held, policy)

    def _came(self, rows: pa.Table, plan: Plan, seen: int) -> Landed | None:
        """Return the commit of a write that raised if all its rows are in the table, else None."""
        return self.came(rows.take(pa.array(np.concatenate([plan.write, plan.update]))), seen)

    def came(self, chosen: pa.Table, seen: int) -> Landed | None:
        """Return the commit of a write that raised if all these rows are there, else None."""
        # The plan's hashes do not serve: reading all ids again takes another seed.
        ids, keys = string_array(chosen["id"]), string_array(chosen["dedup_key"])
        statuses = self.classify(claims_of(chosen, ids, keys))
        if (statuses != IdStatus.DUPLICATE).any():
            return None
        return Landed(int(self._handle.version), chosen.num_rows)

    def _add(self, rows: pa.Table, plan: Plan) -> Write:
        chosen = widen(_take(rows, plan.write), self._handle.schema)

        def add() -> Landed:
            reach("before_add")
            return Landed(int(self._handle.add(chosen).version), chosen.num_rows)

        return add

    def _merge(self, rows: pa.Table, plan: Plan) -> Write:
        source = pa.concat_tables([_take(rows, plan.write), self._updates(rows, plan)])
        source = widen(source, self._handle.schema)
        merge = self._handle.merge_insert("id").when_not_matched_insert_all()
        if len(plan.update):
            merge = merge.when_matched_update_all()
        # Only without an index do two merges of the same new ids see each other.
        merge = merge.use_index(False)

        def execute() -> Landed:
            result = merge.execute(source)
            return Landed(int(result.version), int(result.num_inserted_rows))

        return execute

    def _updates(self, rows: pa.Table, plan: Plan) -> pa.Table:
        updates = _take(rows, plan.update)
        if not updates.num_rows:
            return updates
        names = ["id", "created_at", "updated_at"]
        found = read.find(self._handle, "id", updates["id"].to_pylist(), columns=names)
        at = pc.index_in(updates["id"], string_array(found["id"]))
        before = {name: found[name].take(at) for name in names}
        created = pc.coalesce(before["created_at"], updates["created_at"])
        # Where the clock has gone back meanwhile, the row's times do not.
        former = pc.coalesce(before["updated_at"], updates["updated_at"])
        later = pc.less(updates["updated_at"], former)
        updated = pc.if_else(later, former, updates["updated_at"])
        for name, column in {"created_at": created, "updated_at": updated}.items():
            place = updates.schema.get_field_index(name)
            updates = updates.set_column(place, updates.schema.field(place), column)
        return updates

    def drop_doubles(self, ids: pa.ChunkedArray) -> int:
        """Delete our copies of ids that an outside writer committed at once; return how many."""
        first: dict[str, int] = {}
        ours: list[tuple[str, int]] = []
        for row_id, address in read.addresses(self._handle, ids):
            first[row_id], later = sorted((address, first.get(row_id, address)))
            if later != first[row_id]:
                ours.append((row_id, later))
        for at in range(0, len(ours), _DELETE_ROWS):
            # The id too: a compaction may give the address to another row.
            rows = (
                f"(_rowid = {address} AND {id_in([i])})" for i, address in ours[at:][:_DELETE_ROWS]
            )
            self._delete(" OR ".join(rows))
        return len(ours)

    def _delete(self, where: str) -> None:
        def delete() -> Landed:
            gone = self._handle.delete(where)
            return Landed(int(gone.version), int(gone.num_deleted_rows))

        doing = f"deleting doubled rows of table {self._handle.name!r}"
        came = partial(self._writes.gone, where)
        self._writes.commit(doing, delete, came, seen=int(self._handle.version))

    def _held(self, ids: list[str]) -> dict[str, HeldRow]:
        return held(self._handle, ids)


def _take(rows: pa.Table, which: commit.Indices) -> pa.Table:
    return rows if len(which) == rows.num_rows else rows.take(pa.array(which))


def _outcome(plan: Plan, policy: OnConflict, version: int, written: int = 0) -> Appended:
    update = policy is OnConflict.UPDATE
    conflict, elsewhere = (plan.statuses == s for s in (IdStatus.CONFLICT, IdStatus.ELSEWHERE))
    left_out = np.flatnonzero(elsewhere if update else conflict | elsewhere)
    updated = int(conflict.sum()) if update else 0
    return Appended(
        written=written,
        # Rows that an outside writer committed just before us count as duplicates.
        duplicates=len(plan.statuses) - written - len(left_out) - updated,
        conflicts=tuple(left_out.tolist()),
        updated=updated,
        version=version,
    )
