"""What of a batch is written: known rows left out, equal ids settled, conflicts found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.store.keys import Hashes, string_array
from memworker.store.known import IdStatus, KnownIds, Statuses

Indices = npt.NDArray[np.int64]
LookUp = Callable[[list[str]], dict[str, str]]


class OnConflict(StrEnum):
    """What becomes of a row whose id is known with another text."""

    REJECT = "reject"
    SKIP = "skip"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did; `written + duplicates + len(conflicts) + updated` are all its rows.

    `conflicts` are the positions, in the batch, of rows left out since their
    id is known with another text. `version` is the table's after the commit.
    """

    written: int
    duplicates: int
    conflicts: tuple[int, ...]
    updated: int
    version: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The fate of each row of a batch."""

    statuses: Statuses
    write: Indices
    update: Indices
    keys: Hashes
    records: Hashes


def plan(batch: pa.Table, known: KnownIds, look_up: LookUp, on_conflict: OnConflict) -> Plan:
    """Decide what is written and what is updated, without touching the table."""
    ids, dedup = string_array(batch["id"]), string_array(batch["dedup_key"])
    keys, records = known.hash(ids, dedup)
    last = on_conflict is OnConflict.UPDATE
    statuses, standing = classify(ids, dedup, known, look_up, hashes=(keys, records), last=last)
    conflict = statuses == IdStatus.CONFLICT
    # A row that stands for its id in this batch, and conflicts, does so with the table.
    update = np.flatnonzero(conflict & standing) if last else np.empty(0, np.int64)
    return Plan(statuses, np.flatnonzero(statuses == IdStatus.NEW), update, keys, records)


def classify(
    ids: pa.Array,
    dedup_keys: pa.Array,
    known: KnownIds,
    look_up: LookUp,
    *,
    hashes: tuple[Hashes, Hashes],
    last: bool = False,
) -> tuple[Statuses, npt.NDArray[np.bool_]]:
    """Return (IdStatus a row, whether the row stands for its id within the batch).

    Of equal ids within the batch the first stands, or with `last` the last, as
    if the rows had come in batches of one; the others are duplicates or
    conflicts of it.
    """
    statuses = known.find(*hashes)
    _confirm(statuses, ids, dedup_keys, look_up)
    standing = np.ones(len(statuses), bool)
    repeated = _maybe_repeated(hashes[0])
    if len(repeated):
        _settle_repeated(statuses, standing, repeated, ids, dedup_keys, last)
    return statuses, standing


def _confirm(statuses: Statuses, ids: pa.Array, dedup_keys: pa.Array, look_up: LookUp) -> None:
    suspects = np.flatnonzero(statuses == IdStatus.CONFLICT)
    if not len(suspects):
        return
    rows = pa.array(suspects)
    wanted, keys = ids.take(rows).to_pylist(), dedup_keys.take(rows).to_pylist()
    there = look_up(wanted)
    for row, row_id, key in zip(suspects, wanted, keys, strict=True):
        if row_id not in there:
            # Only the 64-bit hashes of two ids were equal.
            statuses[row] = IdStatus.NEW
        elif there[row_id] == key:
            statuses[row] = IdStatus.DUPLICATE


def _maybe_repeated(keys: Hashes) -> Indices:
    """Return the rows, in order, whose id's hash occurs more than once."""
    order = np.argsort(keys, kind="stable")
    equal = keys[order][1:] == keys[order][:-1]
    if not equal.any():
        return np.empty(0, np.int64)
    marked = np.zeros(len(keys), bool)
    marked[order[1:][equal]] = True
    marked[order[:-1][equal]] = True
    return np.flatnonzero(marked)


def _settle_repeated(
    statuses: Statuses,
    standing: npt.NDArray[np.bool_],
    rows: Indices,
    ids: pa.Array,
    dedup_keys: pa.Array,
    last: bool,
) -> None:
    picked = pa.array(rows)
    triples = zip(
        rows.tolist(),
        ids.take(picked).to_pylist(),
        dedup_keys.take(picked).to_pylist(),
        strict=True,
    )
    stands: dict[str, tuple[int, str]] = {}
    for row, row_id, key in reversed(list(triples)) if last else triples:
        if row_id not in stands:
            stands[row_id] = (row, key)
            continue
        standing[row] = False
        stand, stand_key = stands[row_id]
        # The row of a known id was compared with the table's already, which stays as it is.
        if last or statuses[stand] == IdStatus.NEW:
            same = key == stand_key
            statuses[row] = IdStatus.DUPLICATE if same else IdStatus.CONFLICT
