"""Rows written to files of a table by many processes, and made its own by one of them.

::

    write_fragment()   any process, any node: a data file that no version names, and its facts
    adopt()            one process, under the commit lock: the ids of many such files compared with
                       the table's and with each other, and all that are new named by one commit

A file whose rows are all new is taken as it is. One in which some row is known (a task that was
given out again, an id that comes twice) is not: its new rows are read back and appended, and the
file goes. So a file that is written twice, or of which nobody hears, changes nothing: it is a
leftover (leftovers.py), which the next clean-up deletes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from memworker.failpoints import reach
from memworker.store import places
from memworker.store.append import Appender
from memworker.store.commit import Indices, OnConflict, Plan
from memworker.store.known import IdStatus
from memworker.store.manifest import DATA
from memworker.store.opened import OpenTable
from memworker.store.schema import SCOPES, records, widen
from memworker.store.writes import Landed, Writes


@dataclass(frozen=True, slots=True)
class Written:
    """A file of rows: what Lance says of it, as JSON, and the rows' columns `FACTS`, in order."""

    fragment: str
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Adopted:
    """What became of the rows of several files, numbered through all of them.

    `again` are rows that are new and stand in files that were not taken, to be appended.
    """

    written: int
    duplicates: int
    conflicts: tuple[int, ...]
    version: int
    again: pa.Table | None


FACTS = ("id", "dedup_key", "metadata", *SCOPES)
"""The columns by which rows are compared; metadata as JSON text."""


def write_fragment(table: OpenTable, rows: pa.Table) -> str:
    """Write rows to one file that no version names yet. Takes no lock."""
    from lance.fragment import write_fragments

    chosen = widen(rows, table.handle.schema)
    (fragment,) = write_fragments(chosen, str(table.folder), mode="append")
    return json.dumps(fragment.to_json())


class Adopter:
    """Makes files of rows a table's own. The caller holds the locks."""

    def __init__(self, writes: Writes, appender: Appender) -> None:
        self._writes, self._appender = writes, appender
        self._table = writes.table
        # A file that was heard of twice is the table's, and must not go as one that is not.
        self._taken: set[Path] = set()

    def adopt(self, files: Sequence[Written], policy: OnConflict) -> Adopted:
        """Take what is new in one commit; of equal ids the first in order counts."""
        rows = pa.concat_tables([each.rows for each in files])
        seen = int(self._writes.handle.version)
        plan = self._appender.plan(rows, policy)
        new = np.zeros(len(plan.statuses), np.bool_)
        new[plan.write] = True
        ends = np.cumsum([each.rows.num_rows for each in files])
        whole, others, again, chosen, at = [], [], [], [], 0
        for file, end in zip(files, ends.tolist(), strict=True):
            mine = new[at:end]
            if mine.all():
                whole.append(file)
                chosen.append(np.arange(at, end))
            else:
                others.append(file)
                if mine.any():
                    again.append(self._read_back(file, np.flatnonzero(mine)))
            at = end
        version, written = seen, 0
        if whole:
            version, written = self._commit(whole, rows, plan, np.concatenate(chosen), seen)
        for file in others:
            self._remove(file)
        left_out = (plan.statuses == IdStatus.CONFLICT) | (plan.statuses == IdStatus.ELSEWHERE)
        left = pa.concat_tables(again) if again else None
        known = len(plan.statuses) - written - int(left_out.sum()) - (left.num_rows if left else 0)
        return Adopted(written, known, tuple(np.flatnonzero(left_out).tolist()), version, left)

    def _commit(
        self, files: list[Written], rows: pa.Table, plan: Plan, chosen: Indices, seen: int
    ) -> tuple[int, int]:
        import lance

        fragments = [lance.FragmentMetadata.from_json(each.fragment) for each in files]
        mine = rows.take(pa.array(chosen))

        def append() -> Landed:
            reach("before_adopt")
            operation = lance.LanceOperation.Append(fragments)
            done = lance.LanceDataset.commit(str(self._table.folder), operation, read_version=seen)
            return Landed(int(done.version), mine.num_rows)

        came = partial(self._appender.came, mine)
        doing = f"appending files to table {self._table.name!r}"
        landed = self._writes.commit(doing, append, came, seen=seen)
        reach("after_adopt")
        self._taken.update(map(self._path, files))
        version, written = landed.version, landed.rows
        if version != seen + 1:
            written -= self._appender.drop_doubles(mine["id"])
            version = int(self._writes.handle.version)
        self._appender.known.committed(version, plan.keys[chosen], plan.records[chosen])
        return version, written

    def _read_back(self, file: Written, which: Indices) -> pa.Table:
        """Read some rows of a file, to be appended by themselves."""
        from lance.file import LanceFileReader

        read = LanceFileReader(str(self._path(file)), columns=["text", "vector"]).read_all()
        there = read.to_table().take(pa.array(which))
        facts = file.rows.take(pa.array(which))
        flat = there["vector"].combine_chunks().flatten().to_numpy()
        return records(
            facts["id"].combine_chunks(),
            there["text"].combine_chunks(),
            flat.reshape(len(which), -1),
            scopes={name: facts[name].combine_chunks() for name in SCOPES},
            metadata_json=facts["metadata"].combine_chunks(),
            dedup_keys=facts["dedup_key"].combine_chunks(),
        )

    def _remove(self, file: Written) -> None:
        path = self._path(file)
        if path not in self._taken:
            with suppress(OSError):
                path.unlink()

    def _path(self, file: Written) -> Path:
        told: dict[str, Any] = json.loads(file.fragment)
        return places.on_disk(self._table.folder) / DATA / str(told["files"][0]["path"])
