"""Whether a table's indices can be read, and find what they should.

An index holds nothing that the rows do not: a damaged one is dropped and built anew. So a
sample of rows, evenly taken, is looked up through each; its pages are all read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from memworker.store import index, whole
from memworker.store.damage import Damage, DamageKind
from memworker.store.durable import index_files
from memworker.store.filters import key_in, to_sql
from memworker.store.lance import brief
from memworker.store.manifest import Manifest
from memworker.store.salvage import ADDRESS, FragmentPart, view
from memworker.store.schema import SCOPES, vectors_of
from memworker.store.text import STOP_WORDS, match

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_KEYS = ("id", "dedup_key")
_SAMPLED = ("text", "vector", *_KEYS, *SCOPES)
_SAMPLE = 2_048
# A search costs milliseconds, a look-up by key some 40 µs.
_SEARCHES = 32
_AT_ONCE = 256
_TEXT_CHARS = 200
# Beyond so many users the rest go unlooked at.
_SCOPES_COUNTED = 256
# Of cosine distance, and a share of a dot product: what float32 may lose.
_NEAR = 1e-3
_WORD = re.compile(r"\b[a-z]{4,20}\b")


class IndexCheck:
    """Gathers a sample while the rows are read, then asks the indices for it."""

    def __init__(
        self, handle: LanceTable, table: Path, manifest: Manifest, distance: str, rows: int
    ) -> None:
        self._handle, self._table, self._distance = handle, table, distance
        self._folders: dict[str, list[str]] = {}
        for each in manifest.indices:
            self._folders.setdefault(each.name, []).append(each.folder)
        self._every = max(1, rows // _SAMPLE)
        self._seen = 0
        self._taken: list[pa.Table] = []
        self._counts: dict[str, dict[str, int]] = {scope: {} for scope in SCOPES}

    def sample(self, part: FragmentPart) -> None:
        """Take some of these rows."""
        if not self._folders:
            return
        rows = view(part, _SAMPLED)
        at = np.arange(-self._seen % self._every, rows.num_rows, self._every)
        self._seen += rows.num_rows
        self._taken.append(rows.take(pa.array(at)))
        for scope, counts in self._counts.items():
            for value, count in _counted(rows[scope]):
                if value in counts or len(counts) < _SCOPES_COUNTED:
                    counts[value] = counts.get(value, 0) + count

    def damages(self, changed: set[str], *, searching: bool) -> Iterator[Damage]:
        """Tell what is wrong; without `searching` only what shows in an index's own files.

        `changed` are those whose files have changed since they were verified.
        """
        columns, why = self._columns()
        for name, folders in self._folders.items():
            said = "its files have changed since the last verification" if name in changed else why
            said = said or self._flaw(folders) or self._read(name)
            if said is None and searching:
                said = self._asked(columns.get(name, ""))
            if said is not None:
                path = ", ".join(folders)
                yield Damage(
                    DamageKind.INDEX, f"index {name}: {said}", path, columns.get(name) or None
                )

    def _columns(self) -> tuple[dict[str, str], str | None]:
        try:
            return {
                each.name: ", ".join(each.columns) for each in self._handle.list_indices()
            }, None
        except Exception as error:
            return {}, f"it cannot be read: {brief(error)}"

    def _flaw(self, folders: Sequence[str]) -> str | None:
        for folder in folders:
            names = index_files(self._table / folder)
            if not names:
                return f"{folder} holds no file"
            for name in names:
                if flaw := whole.flaw_of(self._table / folder / name):
                    return f"{name} {flaw}"
        return None

    def _read(self, name: str) -> str | None:
        try:
            self._handle.prewarm_index(name)
        except Exception as error:
            return f"it cannot be read: {brief(error)}"
        return None

    def _asked(self, column: str) -> str | None:
        ask = {"vector": self._by_vector, "text": self._by_words}
        ask |= {key: self._by_key for key in _KEYS} | {scope: self._by_scope for scope in SCOPES}
        if column not in ask or not self._taken:
            return None  # not of our making, or of no row
        rows = pa.concat_tables(self._taken)
        try:
            missed = ask[column](column, rows)
        except Exception as error:
            return f"a search through it failed: {brief(error)}"
        return f"it does not find {missed}" if missed else None

    def _by_key(self, column: str, rows: pa.Table) -> str | None:
        for start in range(0, rows.num_rows, _AT_ONCE):
            asked = rows.slice(start, _AT_ONCE)
            query = self._handle.search().where(key_in(column, asked[column].to_pylist()))
            found = query.select([ADDRESS]).to_arrow()[ADDRESS].to_pylist()
            missed = set(asked[ADDRESS].to_pylist()) - set(found)
            if missed:
                return _named(asked, missed)
        return None

    def _by_scope(self, column: str, rows: pa.Table) -> str | None:
        for value, count in self._counts[column].items():
            found = int(self._handle.count_rows(to_sql({column: value})))
            if found != count:
                return f"all rows of {column} {value!r}: {found:,}, not {count:,}"
        return None

    def _by_vector(self, column: str, rows: pa.Table) -> str | None:
        asked = _some(rows)
        vectors = vectors_of(asked[column], asked[column].type.list_size)
        for row, vector in enumerate(vectors):
            query = self._handle.search(vector).distance_type(self._distance).limit(1)
            found = index.tune(query).select(["_distance"]).to_arrow()["_distance"].to_pylist()
            # Of dot products LanceDB gives 1 - p; nothing nearer than itself is at most as far.
            most = 1 - float(vector @ vector) if self._distance == "dot" else 0.0
            if not found or found[0] > most + _NEAR * max(1.0, abs(most)):
                return _named(asked, {asked[ADDRESS][row].as_py()})
        return None

    def _by_words(self, column: str, rows: pa.Table) -> str | None:
        asked = _some(rows)
        for row, text in enumerate(asked[column].to_pylist()):
            shown = " ".join(
                _WORD.findall(text[:_TEXT_CHARS])[: -1 if text[_TEXT_CHARS:] else None]
            )
            if not any(word not in STOP_WORDS for word in shown.split()):
                continue  # nothing that surely is a word of the index
            one = f"{ADDRESS} = {asked[ADDRESS][row].as_py()}"
            query = self._handle.search(match(shown), query_type="fts").where(one, prefilter=True)
            if not query.limit(1).select(["id", "_score"]).to_arrow().num_rows:
                return _named(asked, {asked[ADDRESS][row].as_py()})
        return None


def _counted(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    counts = column.value_counts()
    return [(each["values"].as_py(), each["counts"].as_py()) for each in counts]


def _some(rows: pa.Table) -> pa.Table:
    at = np.linspace(0, rows.num_rows - 1, min(_SEARCHES, rows.num_rows)).astype(np.int64)
    return rows.take(pa.array(np.unique(at)))


def _named(rows: pa.Table, addresses: set[int]) -> str:
    first = min(addresses)
    row_id = rows["id"][rows[ADDRESS].to_pylist().index(first)].as_py()
    return f"the row {row_id!r}" + (f" and {len(addresses) - 1} more" if len(addresses) > 1 else "")
