"""What is wrong with a table: which rows, in which file and column, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

_SHOWN_IDS = 5
_SHOWN_RUNS = 5


class DamageKind(StrEnum):
    """What part of a table is damaged."""

    VERSION = "version"
    FILE = "file"
    ROWS = "rows"
    INDEX = "index"
    JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    `path` is a file or folder below the table's own, `rows` the addresses of
    the rows concerned, `ids` the ids of those whose id can be read. `readable`
    means that these rows can be read one by one, and are right.
    """

    kind: DamageKind
    why: str
    path: str | None = None
    column: str | None = None
    rows: tuple[range, ...] = ()
    ids: tuple[str, ...] = ()
    readable: bool = False

    @property
    def count(self) -> int:
        """How many rows it concerns."""
        return sum(map(len, self.rows))

    @property
    def positions(self) -> list[tuple[int, int]]:
        """First and last of each run of rows, counted from 0 in their file."""
        return [(run[0] & 0xFFFFFFFF, run[-1] & 0xFFFFFFFF) for run in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {
            "kind": self.kind.value,
            "why": self.why,
            "file": self.path,
            "column": self.column,
            "rows": self.count,
            "positions": self.positions,
            "ids": list(self.ids),
        }

    def __str__(self) -> str:
        where = [self.path] if self.path else []
        where += [f"column {self.column}"] if self.column else []
        where += [f"{_rows(self.count)} ({self._which()})"] if self.rows else []
        return f"{', '.join(where)}: {self.why}" if where else self.why

    def _which(self) -> str:
        if self.ids:
            shown = ", ".join(repr(one) for one in self.ids[:_SHOWN_IDS])
            more = ", …" if len(self.ids) > _SHOWN_IDS else ""
            return f"{'id' if len(self.ids) == 1 else 'ids'} {shown}{more}"
        runs = [str(a) if a == b else f"{a}–{b}" for a, b in self.positions]
        more = ", …" if len(runs) > _SHOWN_RUNS else ""
        return f"position {', '.join(runs[:_SHOWN_RUNS])}{more}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is wrong with one row."""

    address: int
    column: str
    why: str


def gathered(
    marks: Iterable[Mark], paths: Mapping[int, str], ids: Mapping[int, str]
) -> Iterator[Damage]:
    """Join marks of one file, column and reason. `paths` are by fragment, `ids` by address."""

    def kind(mark: Mark) -> tuple[int, str, str]:
        return (mark.address >> 32, mark.column, mark.why)

    ordered = sorted(marks, key=lambda mark: (*kind(mark), mark.address))
    for (fragment, column, why), group in groupby(ordered, kind):
        addresses = list(dict.fromkeys(mark.address for mark in group))
        known = tuple(ids[address] for address in addresses if address in ids)
        yield Damage(
            DamageKind.ROWS, why, paths.get(fragment), column, tuple(runs_of(addresses)), known
        )


def runs_of(addresses: Iterable[int]) -> Iterator[range]:
    """Join neighbours among ascending addresses."""
    first = last = None
    for address in addresses:
        if last is not None and address == last + 1:
            last = address
            continue
        if first is not None and last is not None:
            yield range(first, last + 1)
        first = last = address
    if first is not None and last is not None:
        yield range(first, last + 1)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
