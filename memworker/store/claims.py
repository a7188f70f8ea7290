"""What rows claim to be, what a table holds under their ids, and how the two differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from memworker.store import read
from memworker.store.schema import SCOPES

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_SHOWN_FIELDS = 5
_COLUMNS = ("id", "dedup_key", *SCOPES, "metadata")


class HeldRow(NamedTuple):
    """What a table, or another row, holds under an id; `metadata` is a JSON object or None."""

    key: str
    scope: tuple[str, ...]
    metadata: str | None


@dataclass(frozen=True, slots=True)
class Claims:
    """Rows by what makes them the same: string arrays, without nulls but in the metadata.

    What is None of scopes and metadata is not compared; a scope that is left out is "".
    """

    ids: pa.Array
    keys: pa.Array
    scopes: Mapping[str, pa.Array | pa.ChunkedArray] | None = None
    metadata: pa.Array | pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Iterable[int]) -> list[tuple[str, HeldRow]]:
        """Give some rows, with their ids."""
        picked = pa.array(rows, pa.int64())
        count = len(picked)
        scopes = [_picked((self.scopes or {}).get(name), picked) for name in SCOPES]
        metadata = [None] * count if self.metadata is None else _picked(self.metadata, picked)
        keys = self.keys.take(picked).to_pylist()
        scope = zip(*scopes, strict=True)
        held = map(HeldRow, keys, scope, metadata)
        return list(zip(self.ids.take(picked).to_pylist(), held, strict=True))

    def differs(self, mine: HeldRow, theirs: HeldRow) -> bool:
        """Tell whether two rows of one id and one scope differ in what is to be compared."""
        if mine.key != theirs.key:
            return True
        return self.metadata is not None and not same_metadata(mine.metadata, theirs.metadata)

    def elsewhere(self, mine: HeldRow, theirs: HeldRow) -> bool:
        """Tell whether two rows of one id are of different scopes."""
        return self.scopes is not None and mine.scope != theirs.scope


def claims_of(batch: pa.Table, ids: pa.Array, keys: pa.Array) -> Claims:
    """Return the claims of a batch that has all the columns of a table."""
    return Claims(ids, keys, {name: batch[name] for name in SCOPES}, batch["metadata"])


def held(handle: LanceTable, ids: list[str]) -> dict[str, HeldRow]:
    """Look up what a table holds under some ids."""
    found = read.find(handle, "id", ids, columns=_COLUMNS).to_pydict()
    scopes = zip(*(found[name] for name in SCOPES), strict=True)
    facts = map(HeldRow, found["dedup_key"], scopes, found["metadata"])
    return dict(zip(found["id"], facts, strict=True))


def same_metadata(one: str | None, other: str | None) -> bool:
    """Tell whether two JSON objects say the same; 1, 1.0 and true do not, {} and None do."""
    return one == other or _canonical(one) == _canonical(other)


def difference(mine: HeldRow, theirs: HeldRow) -> str:
    """Say in what a row differs from that which is there, in some words to go after its id."""
    if mine.scope != theirs.scope:
        pairs = zip(SCOPES, mine.scope, theirs.scope, strict=True)
        named = ", ".join(f"{name} {b!r}, not {a!r}" for name, a, b in pairs if a != b)
        return f"of {named}; no update moves a row: delete that one, or give this another id"
    if mine.key != theirs.key:
        return "with another text"
    ours, others = (json.loads(each.metadata or "{}") for each in (mine, theirs))
    fields = [name for name in {**ours, **others} if _field(ours, name) != _field(others, name)]
    told = ", ".join(map(repr, fields[:_SHOWN_FIELDS])) + (", …" if fields[_SHOWN_FIELDS:] else "")
    return f"with the same text and other metadata ({told})"


def _field(metadata: dict[str, Any], name: str) -> str | None:
    return _canonical(json.dumps({name: metadata[name]})) if name in metadata else None


def _canonical(metadata: str | None) -> str:
    return json.dumps(json.loads(metadata or "{}"), sort_keys=True)


def _picked(column: Any, rows: pa.Array) -> list[Any]:
    if column is None:
        return [""] * len(rows)
    found: list[Any] = column.take(rows).to_pylist()
    return found
