"""What of a batch is written: known rows left out, equal ids settled, conflicts found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.store.claims import Claims, HeldRow, claims_of
from memworker.store.keys import Hashes, string_array
from memworker.store.known import IdStatus, KnownIds, Statuses

Indices = npt.NDArray[np.int64]
LookUp = Callable[[list[str]], dict[str, HeldRow]]


class OnConflict(StrEnum):
    """What becomes of a row whose id is known with another text, or other metadata."""

    REJECT = "reject"
    SKIP = "skip"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did; `written + duplicates + len(conflicts) + updated` are all its rows.

    `conflicts` are the positions, in the batch, of rows left out since their
    id is known with another text or metadata, or in another scope. `version` is the
    table's after the commit.
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
    claims = claims_of(batch, string_array(batch["id"]), string_array(batch["dedup_key"]))
    hashes = known.hash(claims.ids, claims.keys, claims.metadata)
    last = on_conflict is OnConflict.UPDATE
    statuses, standing = classify(claims, known, look_up, hashes=hashes, last=last)
    conflict = statuses == IdStatus.CONFLICT
    # A row that stands for its id in this batch, and conflicts, does so with the table.
    update = np.flatnonzero(conflict & standing) if last else np.empty(0, np.int64)
    return Plan(statuses, np.flatnonzero(statuses == IdStatus.NEW), update, *hashes)


def classify(
    claims: Claims,
    known: KnownIds,
    look_up: LookUp,
    *,
    hashes: tuple[Hashes, Hashes],
    last: bool = False,
) -> tuple[Statuses, npt.NDArray[np.bool_]]:
    """Return (IdStatus a row, whether the row stands for its id within the batch).

    Of equal ids within the batch the first stands, or with `last` the last of its
    scope, as if the rows had come in batches of one; the others are duplicates or
    conflicts of it, or elsewhere.
    """
    statuses = known.find(*hashes)
    _confirm(statuses, claims, look_up)
    standing = np.ones(len(statuses), bool)
    repeated = _maybe_repeated(hashes[0])
    if len(repeated):
        _settle_repeated(statuses, standing, repeated, claims, last)
    return statuses, standing


def _confirm(statuses: Statuses, claims: Claims, look_up: LookUp) -> None:
    suspects = np.flatnonzero(statuses == IdStatus.CONFLICT)
    if not len(suspects):
        return
    rows = claims.take(suspects)
    there = look_up([row_id for row_id, _ in rows])
    for row, (row_id, mine) in zip(suspects, rows, strict=True):
        if row_id not in there:
            # Only the 64-bit hashes of two ids were equal.
            statuses[row] = IdStatus.NEW
        elif claims.elsewhere(mine, there[row_id]):
            statuses[row] = IdStatus.ELSEWHERE
        elif not claims.differs(mine, there[row_id]):
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
    claims: Claims,
    last: bool,
) -> None:
    found = list(zip(rows.tolist(), claims.take(rows), strict=True))
    found = _of_one_scope(statuses, standing, found, claims)
    stands: dict[str, tuple[int, HeldRow]] = {}
    for row, (row_id, mine) in reversed(found) if last else found:
        if row_id not in stands:
            stands[row_id] = (row, mine)
            continue
        standing[row] = False
        stand, theirs = stands[row_id]
        # The row of a known id was compared with the table's already, which stays as it is.
        if last or statuses[stand] == IdStatus.NEW:
            same = not claims.differs(mine, theirs)
            statuses[row] = IdStatus.DUPLICATE if same else IdStatus.CONFLICT


def _of_one_scope(
    statuses: Statuses,
    standing: npt.NDArray[np.bool_],
    found: list[tuple[int, tuple[str, HeldRow]]],
    claims: Claims,
) -> list[tuple[int, tuple[str, HeldRow]]]:
    """Give the rows whose id is not that of an earlier row, or of the table's, in another scope."""
    owners: dict[str, HeldRow] = {}
    kept = []
    for row, (row_id, mine) in found:
        owner = owners.setdefault(row_id, mine) if statuses[row] != IdStatus.ELSEWHERE else None
        if owner is None or claims.elsewhere(mine, owner):
            statuses[row], standing[row] = IdStatus.ELSEWHERE, False
        else:
            kept.append((row, (row_id, mine)))
    return kept
