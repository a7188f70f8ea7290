"""One pass over a table, batch by batch: rows by scope and day, lengths, and a sample's ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.store import Table

MOST_ROWS = 10_000_000
SCOPES = ("user_id", "agent_id", "run_id")
_READ = ("id", "text", "created_at", *SCOPES, "last_chunk")
# What is named one by one; what else there is, is told as a number.
NAMED = 9
# Names beyond these are not told apart: a table may have a user a row.
_MOST_VALUES = 200_000
# Texts longer than this are of one length, in the histogram and the percentiles.
_MOST_CHARACTERS = 65_536
_MOST_BARS = 92
_BINS = 24
_SEED = 7


@dataclass(frozen=True, slots=True)
class Shares:
    """Rows by the values of a scope: the largest by name, and how many others there are.

    `days` has the rows of each named value, in the bars of `Days`. `without` rows have no value.
    `exact` is false where there were too many values to tell all apart: `values` is "at least".
    """

    named: list[tuple[str, int]]
    days: list[list[int]]
    values: int
    other_rows: int
    without: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Days:
    """Rows by when they were made (UTC): `first` a day, and from it on a number each `unit`."""

    unit: str
    starts: list[str]
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Characters a text; `bins` are [from, to, rows], to included; the last one has no end."""

    shortest: int
    median: int
    p95: int
    longest: int
    bins: list[tuple[int, int, int]]


class Lots:
    """A sample of rows, each as likely as any other, whose size does not grow with the table.

    Each row gets a random number, and those with the smallest stay. The numbers are the same
    in each run.
    """

    def __init__(self, most: int) -> None:
        self._most, self._random = most, np.random.default_rng(_SEED)
        self._lots: npt.NDArray[np.float64] = np.empty(0)
        self._ids: npt.NDArray[np.object_] = np.empty(0, object)

    def add(self, ids: pa.Array) -> None:
        if not self._most:
            return
        lots = self._random.random(len(ids))
        worst = self._lots.max() if len(self._lots) == self._most else np.inf
        better = np.flatnonzero(lots < worst)
        if not len(better):
            return
        chosen = np.array(ids.take(pa.array(better)).to_pylist(), object)
        lots, chosen = np.append(self._lots, lots[better]), np.append(self._ids, chosen)
        keep = np.argsort(lots, kind="stable")[: self._most]
        self._lots, self._ids = lots[keep], chosen[keep]

    def ids(self) -> list[str]:
        return list(self._ids)


class _ByValue:
    """Counts of one scope's values, and of each on each day."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.on: Counter[tuple[str, int | None]] = Counter()
        self.beyond, self.exact = 0, True

    def add(self, values: pa.Array, days: pa.Array) -> None:
        groups = (
            pa.table({"v": values, "d": days}).group_by(["v", "d"]).aggregate([([], "count_all")])
        )
        columns = (groups[name].to_pylist() for name in ("v", "d", "count_all"))
        for value, day, rows in zip(*columns, strict=True):
            if value not in self.values and len(self.values) >= _MOST_VALUES:
                self.beyond, self.exact = self.beyond + rows, False
                continue
            self.values[value] += rows
            if (value, day) in self.on or len(self.on) < _MOST_VALUES:
                self.on[value, day] += rows

    def shares(self, bars: _Bars | None) -> Shares:
        without = self.values.get("", 0)
        known = {name: rows for name, rows in self.values.items() if name}
        # By size and then by name: the same table gives the same page.
        largest = sorted(known.items(), key=lambda item: (-item[1], item[0]))[:NAMED]
        place = {name: i for i, (name, _) in enumerate(largest)}
        days = [[0] * (len(bars.starts) if bars else 0) for _ in largest]
        for (name, day), rows in self.on.items():
            if bars and name in place and day is not None:
                days[place[name]][bars.of(day)] += rows
        others = sum(known.values()) - sum(rows for _, rows in largest) + self.beyond
        return Shares(largest, days, len(known), others, without, self.exact)


class _Bars:
    """Days, weeks, months or years from the first day to the last: at most 92 of them."""

    def __init__(self, first: int, last: int) -> None:
        self.unit = "year"
        for unit, code in (("day", "D"), ("week", "W"), ("month", "M"), ("year", "Y")):
            self._code = f"datetime64[{code}]"
            self._first = self._number(first)
            n = self._number(last) - self._first + 1
            self.unit = unit
            if n <= _MOST_BARS:
                break
        # Years beyond any sense, of rows with damaged times, would make bars without end.
        self._n = min(n, _MOST_BARS)
        starts = np.arange(self._first, self._first + self._n).astype(self._code)
        self.starts = [str(day) for day in starts.astype("datetime64[D]")]

    def _number(self, day: int) -> int:
        return int(np.datetime64(day, "D").astype(self._code).astype(np.int64))

    def of(self, day: int) -> int:
        return min(self._number(day) - self._first, self._n - 1)


class Tally:
    """What the pass has counted."""

    def __init__(self, sample: int, *, chunked: bool) -> None:
        self.rows = 0
        self.texts = 0 if chunked else None
        self.drawn = Lots(sample)
        self._days: Counter[int] = Counter()
        self._scopes = {name: _ByValue() for name in SCOPES}
        self._characters: npt.NDArray[np.int64] = np.zeros(_MOST_CHARACTERS + 1, np.int64)
        self._longest = 0

    @classmethod
    def of(cls, table: Table, where: Mapping[str, Any] | None, sample: int) -> Tally:
        """Read the visible rows of a table that meet a filter, of ten million at most."""
        there = set(table.columns)
        counts = cls(sample if "id" in there else 0, chunked="last_chunk" in there)
        for batch in _batches(table, where, there):
            counts._add(batch.slice(0, MOST_ROWS - counts.rows))
            if counts.rows >= MOST_ROWS:
                break
        return counts

    def _add(self, batch: pa.RecordBatch) -> None:
        self.rows += len(batch)
        there = batch.schema.names
        if "id" in there:
            self.drawn.add(batch["id"])
        days = pa.nulls(len(batch), pa.int32())
        if "created_at" in there:
            days = batch["created_at"].cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
            days = days.cast(pa.int32())
            for counted in pc.value_counts(days.drop_null()).to_pylist():
                self._days[counted["values"]] += counted["counts"]
        for name, scope in self._scopes.items():
            if name in there:
                scope.add(pc.fill_null(batch[name], ""), days)
        if "text" in there:
            self._add_lengths(batch["text"])
        if self.texts is not None:
            # A row that is no chunk is a text of its own.
            self.texts += int(pc.sum(pc.fill_null(batch["last_chunk"], True)).as_py() or 0)

    def _add_lengths(self, texts: pa.Array) -> None:
        lengths = pc.utf8_length(pc.fill_null(texts, "")).to_numpy(zero_copy_only=False)
        lengths = lengths.astype(np.int64)
        self._longest = max(self._longest, int(lengths.max(initial=0)))
        clipped = np.minimum(lengths, _MOST_CHARACTERS)
        self._characters += np.bincount(clipped, minlength=_MOST_CHARACTERS + 1)

    def days(self) -> Days:
        """Give the rows of each bar; none for no rows."""
        bars = self._bars()
        if bars is None:
            return Days("day", [], [])
        rows = [0] * len(bars.starts)
        for day, n in self._days.items():
            rows[bars.of(day)] += n
        return Days(bars.unit, bars.starts, rows)

    def shares(self) -> dict[str, Shares]:
        """Give those of the scopes that any row has."""
        bars = self._bars()
        shares = {name: scope.shares(bars) for name, scope in self._scopes.items()}
        return {name: share for name, share in shares.items() if share.values}

    def _bars(self) -> _Bars | None:
        return _Bars(min(self._days), max(self._days)) if self._days else None

    def lengths(self) -> Lengths | None:
        """Give the histogram, in steps that people can read; None for no texts."""
        if not self._characters.any():
            return None
        upto = np.cumsum(self._characters)
        shortest, median, p95, p99 = (
            int(np.searchsorted(upto, max(1, np.ceil(self.rows * share))))
            for share in (0, 0.5, 0.95, 0.99)
        )
        step = _step(max(p99, 1))
        starts = list(range(shortest // step * step, p99 + 1, step))
        bins = [
            (start, start + step - 1, int(self._characters[start : start + step].sum()))
            for start in starts
        ]
        rest = self.rows - sum(rows for *_, rows in bins)
        if rest:
            bins.append((starts[-1] + step, self._longest, rest))
        return Lengths(shortest, median, p95, self._longest, bins)


def _batches(
    table: Table, where: Mapping[str, Any] | None, there: set[str]
) -> Iterator[pa.RecordBatch]:
    """Read what there is: another program may have dropped a column, or the table has no chunks."""
    columns = [name for name in _READ if name in there]
    yield from table.scan(where, columns=columns, visible_only=hides(there))


def hides(there: Collection[str]) -> bool:
    """Tell whether a table can say which of its rows are over."""
    return {"expires_at", "superseded_at"} <= set(there)


def _step(most: int) -> int:
    """Return 1, 2 or 5 times a power of ten, of which some 24 go up to `most`."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power * _BINS >= most:
                return digit * power
        power *= 10
