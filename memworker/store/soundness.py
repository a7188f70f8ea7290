"""What a sound row is: its vector, its key against its text, its metadata, its times, its id.

A key is a strong checksum of a row's text and scopes, so a changed byte in any of them
shows. Of the other columns only what cannot be is noticed here; see checksums.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from memworker.store.damage import Mark
from memworker.store.keys import dedup_keys, string_array
from memworker.store.salvage import ADDRESS, Addresses, FragmentPart, view
from memworker.store.schema import SCOPES, Vectors

# Vectors of a model that normalises are of length 1 within 1e-6; the rest is for other encoders.
_UNIT = 1e-3
_KEYED = ("text", *SCOPES, "dedup_key")
_TIMES = ("created_at", "updated_at", "expires_at", "superseded_at")
# What a datetime can hold, in µs: the years 1 to 9999.
_YEARS = (-62_135_596_800_000_000, 253_402_300_799_999_999)
_NEVER_NULL = ("id", "dedup_key", "text", *SCOPES, "created_at", "updated_at")
_MD5 = 32
_NEARLY_ALL = 90
_NOTHING = object()

UNREADABLE = "it cannot be read"
MISMATCH = "text, scopes and dedup_key do not belong together"
DOUBLE = "another row has the same id"


ValuesOf = Callable[[Addresses, list[str]], dict[int, dict[str, Any]]]
"""Gives columns of rows by their addresses, of those of which all can be read, in order."""


class Soundness:
    """Looks at all rows of a table, part by part; then `marks` tells which are not sound.

    `said` holds what was said of the first unreadable row of a fragment's column.
    """

    def __init__(self, dim: int, rows: int, values_of: ValuesOf) -> None:
        self._dim, self._values_of = dim, values_of
        self.said: dict[tuple[int, str], str] = {}
        self._marks: list[Mark] = []
        # What holds for nearly all rows is a property of the table, not damage.
        self._odd_lengths = _Few(rows * _NEARLY_ALL // 100)
        self._odd_keys = _Few(rows * _NEARLY_ALL // 100)
        self._ids: list[tuple[npt.NDArray[np.uint64], Addresses]] = []
        self.notes: list[str] = []

    def look(self, part: FragmentPart) -> None:
        """Look at some rows."""
        for name, bad in part.unreadable.items():
            self._marks += [Mark(at, name, UNREADABLE) for at in bad]
            for address, why in bad.items():
                self.said.setdefault((address >> 32, name), why)
        self._nulls(part)
        self._lengths(view(part, ["vector"]))
        self._keys(part)
        self._metadata(view(part, ["metadata"]))
        self._times(view(part, _TIMES))
        self._remember_ids(view(part, ["id"]))

    def also(self, marks: Iterable[Mark]) -> None:
        """Take note of what others have found."""
        self._marks += marks

    def marks(self) -> list[Mark]:
        """Tell what is wrong, now that all rows were looked at."""
        marks = [*self._marks]
        if self._odd_lengths.few:
            why = "the vector's length is not 1, as that of the others is"
            marks += [Mark(at, "vector", why) for at in self._odd_lengths.addresses()]
        if self._odd_keys.few:
            marks += [Mark(at, "text", MISMATCH) for at in self._odd_keys.addresses()]
        elif self._odd_keys.count:
            self.notes.append(
                f"{self._odd_keys.count:,} rows have keys of another program's making, so their"
                " texts cannot be held against them"
            )
        return [*marks, *self._doubles({mark.address for mark in marks})]

    def _nulls(self, part: FragmentPart) -> None:
        for name in _NEVER_NULL + ("vector",):
            rows = view(part, [name])
            if rows.num_rows and rows[name].null_count:
                self._mark(rows, pc.is_null(rows[name]).to_numpy(), name, "there is no value")

    def _lengths(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        rows = rows.filter(pc.is_valid(rows["vector"]))
        flat: Vectors = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(rows.num_rows, self._dim)
        with np.errstate(all="ignore"):
            squares = np.einsum("ij,ij->i", vectors, vectors)
        zero, wild = squares == 0, ~np.isfinite(squares)
        self._mark(rows, zero, "vector", "the vector is zero")
        self._mark(rows, wild, "vector", "the vector holds NaN, infinity or a huge number")
        odd = (np.abs(squares - 1) > 2 * _UNIT) & ~zero & ~wild
        self._odd_lengths.add(rows[ADDRESS].to_numpy()[odd])

    def _keys(self, part: FragmentPart) -> None:
        rows = view(part, _KEYED)
        if not rows.num_rows or any(rows[name].null_count for name in _KEYED):
            rows = rows.drop_null()
        if not rows.num_rows:
            return
        texts, *scopes = (string_array(rows[name]) for name in _KEYED[:-1])
        wanted = dedup_keys(texts, *scopes)
        wrong = pc.not_equal(wanted, string_array(rows["dedup_key"])).to_numpy(zero_copy_only=False)
        if not wrong.any():
            return
        suspects = rows.filter(pa.array(wrong))
        proven = _proven_otherwise(part, suspects)
        self._odd_keys.add(suspects[ADDRESS].to_numpy()[~proven])

    def _metadata(self, rows: pa.Table) -> None:
        if not rows.num_rows or rows["metadata"].null_count == rows.num_rows:
            return
        values = _json_texts(rows["metadata"])
        wrong = np.fromiter((not _is_json(value) for value in values), bool, rows.num_rows)
        self._mark(rows, wrong, "metadata", "it is no JSON")

    def _times(self, rows: pa.Table) -> None:
        for name in _TIMES if rows.num_rows else ():
            moments = rows[name].cast(pa.int64())
            inside = pc.and_(
                pc.greater_equal(moments, _YEARS[0]), pc.less_equal(moments, _YEARS[1])
            )
            outside = pc.invert(inside.fill_null(True)).to_numpy()
            self._mark(rows, outside, name, "the time is outside the years 1 to 9999")

    def _remember_ids(self, rows: pa.Table) -> None:
        if rows.num_rows:
            ids = rows["id"].fill_null("").cast(pa.binary()).to_pylist()
            hashes = np.fromiter(map(xxh3_64_intdigest, ids), np.uint64, len(ids))
            self._ids.append((hashes, rows[ADDRESS].to_numpy()))

    def _doubles(self, marked: set[int]) -> Iterator[Mark]:
        """Tell the rows that have one id, without those that are damaged anyway.

        An update would have removed the older. If they are alike, the last may stay;
        if not, any of them may be the damaged one.
        """
        if not self._ids:
            return
        hashes, addresses = map(np.concatenate, zip(*self._ids, strict=True))
        order = np.lexsort((addresses, hashes))
        again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if not len(again):
            return
        # Equal hashes of different ids are for the reading to tell.
        suspects = np.union1d(order[again], order[again + 1])
        alike: dict[str, dict[int, str]] = {}
        rows = self._values_of(np.sort(addresses[suspects]), ["id", "dedup_key"])
        for address, row in rows.items():
            if address not in marked:
                alike.setdefault(row["id"], {})[address] = row["dedup_key"]
        for found in alike.values():
            same = len(set(found.values())) == 1
            for address in sorted(found)[:-1] if same else found if len(found) > 1 else ():
                yield Mark(address, "id", DOUBLE)

    def _mark(self, rows: pa.Table, which: npt.NDArray[np.bool_], column: str, why: str) -> None:
        if which.any():
            found = rows[ADDRESS].to_numpy()[which].tolist()
            self._marks += [Mark(address, column, why) for address in found]


class _Few:
    """Addresses of rows, remembered as long as they are no more than a few."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: list[Addresses] = []
        self.count = 0

    @property
    def few(self) -> bool:
        return self.count <= self._most

    def add(self, addresses: Addresses) -> None:
        self.count += len(addresses)
        if not self.few:
            self._found.clear()
        elif len(addresses):
            self._found.append(addresses)

    def addresses(self) -> list[int]:
        return np.concatenate(self._found).tolist() if self._found else []


def _proven_otherwise(part: FragmentPart, suspects: pa.Table) -> npt.NDArray[np.bool_]:
    """Tell of which rows the text is what Mem0 wrote: its keys are its own, its MD5 is beside."""
    metadata = view(part, ["metadata"])
    values = dict(
        zip(metadata[ADDRESS].to_pylist(), _json_texts(metadata["metadata"]), strict=True)
    )
    proven = np.zeros(suspects.num_rows, bool)
    pairs = zip(suspects[ADDRESS].to_pylist(), suspects["text"].to_pylist(), strict=True)
    for row, (address, text) in enumerate(pairs):
        facts = _parsed(values.get(address))
        stored = facts.get("hash") if isinstance(facts, dict) else None
        if isinstance(stored, str) and len(stored) == _MD5:
            proven[row] = stored == hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    return proven


def _json_texts(column: pa.ChunkedArray) -> list[str | None]:
    array = column.combine_chunks()
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    texts: list[str | None] = storage.to_pylist()
    return texts


def _is_json(value: str | None) -> bool:
    return value is None or _parsed(value) is not _NOTHING


def _parsed(value: str | None) -> object:
    try:
        return json.loads(value) if value is not None else _NOTHING
    except ValueError:
        return _NOTHING
