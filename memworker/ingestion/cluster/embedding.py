"""The actor of a node: it leaves out what the table knows, and embeds the rest in a pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import TableNotFound
from memworker.ingestion.cluster.parcels import EmbeddedPart, Left, ReadPart, packed, unpacked
from memworker.ingestion.cluster.parts import be_in
from memworker.ingestion.committer import as_records
from memworker.ingestion.conflicts import note_on_ids, told_conflicts
from memworker.ingestion.records import EXCERPT_CHARS, ReadBatch, scopes_of
from memworker.ingestion.reuse import Reuse, ReusePlan, WindowVectors
from memworker.ingestion.windows import Window, window_of
from memworker.paths import Place
from memworker.pool import PoolOptions, WorkTotals
from memworker.store import IdStatus, OnConflict, Table

_TIMES = {"first_dispatch", "last_vector", "read_at"}


@dataclass(frozen=True, slots=True)
class HowToEmbed:
    """What an actor is made with. `table` is None while there is none: then no row is known."""

    pool: PoolOptions
    db: Place
    table: str | None
    on_conflict: OnConflict
    folder: str
    fragments: bool = False


class Embedder:
    """Takes blocks of `ReadPart` to blocks of `EmbeddedPart`, several at once.

    Which ids the table has is read when the actor starts, from the table itself, and kept in
    files of this node (see store/known.py): nothing is sent around. What is committed
    meanwhile need not be known here, for the driver compares again when it commits.
    """

    def __init__(self, how: HowToEmbed) -> None:
        be_in(how.folder)
        self._how = how
        self._known = _Known(how)
        self._pool = how.pool.make()
        self._told = WorkTotals()
        self._telling = threading.Lock()

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for part, rows, _ in unpacked(block, ReadPart):
            if rows is None or not rows.num_rows:
                yield self._packed(EmbeddedPart(part))
                continue
            window, left, known = self._known.left_out(ReadBatch(part.path, rows))
            began = time.perf_counter()
            done = [*self._embedded(window)]
            took_s = time.perf_counter() - began
            told = EmbeddedPart(part, left, took_s=took_s, reused=sum(n for *_, n in done))
            if self._how.fragments:
                yield self._packed(*self._written(told, window, [each for _, each, _ in done]))
                continue
            # What was read is told once, with the first of its windows.
            for cut, outcome, _ in done:
                told = replace(told, failures=outcome.failures)
                yield self._packed(told, _with_vectors(cut, outcome), known)
                told, known = EmbeddedPart(ReadPart(part.path)), None
            if not done:
                yield self._packed(told, known=known)

    def _embedded(self, window: Window) -> Iterator[tuple[Window, WindowVectors, int]]:
        if not len(window):
            return
        reuse = Reuse(self._pool.dim)
        cuts = window.cut(self._pool.window_ends(window.texts))
        planned = ((cut, reuse.plan(cut.texts, cut.text_keys)) for cut in cuts)
        for (cut, plan), embedded in self._pool.stream(planned, texts=_to_embed):
            yield cut, reuse.settle(plan, embedded), plan.reused

    def _written(
        self, told: EmbeddedPart, window: Window, done: list[WindowVectors]
    ) -> tuple[EmbeddedPart, pa.RecordBatch | None]:
        """Write the rows to a file of the table, and give back what they are told apart by."""
        reasons: dict[int, str] = {}
        at = 0
        for outcome in done:
            reasons |= {at + row: why for row, why in outcome.unstorable().items()}
            at += len(outcome.vectors)
        good = np.ones(len(window), np.bool_)
        good[list(reasons)] = False
        told = replace(told, unstorable=tuple(window.rejects(reasons)))
        if not good.any():
            return told, None
        vectors = np.concatenate([outcome.vectors for outcome in done])[good]
        kept = window.keep(good)
        fragment = self._known.open().write_fragment(as_records(kept, vectors))
        place = kept.rows.schema.get_field_index("text")
        begun = pc.utf8_slice_codeunits(kept.texts, 0, EXCERPT_CHARS)
        return replace(told, fragment=fragment), kept.rows.set_column(place, "text", begun)

    def _packed(self, told: EmbeddedPart, rows: Any = None, known: Any = None) -> pa.Table:
        with self._telling:
            now, before = self._pool.work, self._told
            self._told = now
        names = {field.name for field in fields(WorkTotals)} - _TIMES
        work = {name: getattr(now, name) - getattr(before, name) for name in names}
        notes = self._pool.identity.notes
        told = replace(told, work=work, notes=notes, workers=self._pool.workers if now.texts else 0)
        return packed(replace(told, node=_node()), rows, known)


class _Known:
    """Leaves out the rows whose ids the table had when this actor started."""

    def __init__(self, how: HowToEmbed) -> None:
        self._policy = how.on_conflict
        self._table: Table | None = None
        self._asking = threading.Lock()
        if how.table is not None:
            try:
                self._table = Table.open(how.db, how.table)
            except TableNotFound:
                pass

    def open(self) -> Table:
        """Give the table, which is there where nodes write to it."""
        assert self._table is not None
        return self._table

    def left_out(self, batch: ReadBatch) -> tuple[Window, Left, pa.RecordBatch | None]:
        """Return the rows to embed, what is told of the others, and rows known that may matter."""
        window, left = window_of(batch), Left(note=note_on_ids(batch.rows))
        if self._table is None:
            return window, left, None
        statuses = self._statuses(window)
        conflict, known = statuses == IdStatus.CONFLICT, statuses == IdStatus.DUPLICATE
        refused = statuses == IdStatus.ELSEWHERE
        update = self._policy is OnConflict.UPDATE
        if not update:
            refused = refused | conflict
        rows = np.flatnonzero(refused).tolist()
        told: tuple[Any, ...] = ()
        if rows and self._policy is not OnConflict.SKIP:
            told = tuple(window.rejects(told_conflicts(self._table, window.rows, rows)))
        contested = tuple(window.ids.take(pa.array(np.flatnonzero(conflict))).to_pylist())
        if update and contested:
            # Of several texts of an id the last is to stand: none of them may be left out.
            known &= ~pc.is_in(window.ids, pa.array(contested)).to_numpy(zero_copy_only=False)
        left = replace(
            left,
            duplicates=int(known.sum()),
            conflicts=told,
            n_conflicts=len(rows),
            contested=contested if update else (),
        )
        apart = window.rows.filter(pa.array(known)) if update and known.any() else None
        return window.keep(~(known | refused)), left, apart

    def _statuses(self, window: Window) -> Any:
        scopes, metadata = scopes_of(window.rows), window.rows["metadata"]
        with self._asking:
            assert self._table is not None
            return self._table.classify(
                window.ids, window.rows["key"], scopes=scopes, metadata=metadata, newest=False
            )


def _with_vectors(window: Window, outcome: WindowVectors) -> pa.RecordBatch:
    flat = pa.array(outcome.vectors.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, outcome.vectors.shape[1])
    return window.rows.append_column("vector", vectors)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _to_embed(planned: tuple[Window, ReusePlan]) -> pa.Array:
    return planned[1].texts
