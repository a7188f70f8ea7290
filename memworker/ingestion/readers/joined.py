"""Rows of many small inputs, joined before columns are made of them.

A file of a line costs what a line costs: the price of a block of columns, of a window and
of a commit is paid once for all that come together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from memworker.ingestion.readers.checked import CheckedRows, ReadOptions
from memworker.ingestion.readers.objects import ObjectRows, checked_objects, with_fields

# A block of no more than this share of what one may hold waits for others.
_SMALL = 16


def joined(
    parts: Iterable[tuple[str, ObjectRows | CheckedRows | None]], options: ReadOptions
) -> Iterator[tuple[str, CheckedRows]]:
    """Give blocks of checked rows with their paths; small ones of neighbours become one.

    A part of None says that nothing more comes for now.
    """
    gathered = _Gathered()
    for path, rows in parts:
        if isinstance(rows, ObjectRows) and len(rows.objects) <= options.batch_rows // _SMALL:
            if gathered.rows + len(rows.objects) > options.batch_rows or not gathered.takes(rows):
                yield from gathered.taken(options)
            gathered.add(path, with_fields(path, rows, options))
            continue
        yield from gathered.taken(options)
        if isinstance(rows, ObjectRows):
            yield path, checked_objects(path, rows, options)
        elif rows is not None:
            yield path, rows
    yield from gathered.taken(options)


@dataclass(slots=True)
class _Gathered:
    """Small blocks of rows that wait for others."""

    parts: list[tuple[str, ObjectRows]] = field(default_factory=list)
    rows: int = 0

    def takes(self, rows: ObjectRows) -> bool:
        return not self.parts or self.parts[0][1].not_utf8 == rows.not_utf8

    def add(self, path: str, rows: ObjectRows) -> None:
        self.parts.append((path, rows))
        self.rows += len(rows.objects)

    def taken(self, options: ReadOptions) -> Iterator[tuple[str, CheckedRows]]:
        parts, self.parts, self.rows = self.parts, [], 0
        if not parts:
            return
        path, rows = parts[0]
        several = len(parts) > 1
        yield path, checked_objects(path, _one(parts) if several else rows, options)


def _one(parts: list[tuple[str, ObjectRows]]) -> ObjectRows:
    ends = list(accumulate(len(rows.objects) for _, rows in parts))
    starts = [0, *ends]

    def raw(i: int) -> str:
        part = bisect_right(ends, i)
        return parts[part][1].raw(i - starts[part])

    return ObjectRows(
        np.concatenate([rows.lines for _, rows in parts]),
        [each for _, rows in parts for each in rows.objects],
        raw,
        {
            start + i: reason
            for start, (_, rows) in zip(starts, parts, strict=False)
            for i, reason in rows.faults.items()
        },
        parts[0][1].not_utf8,
        paths=[path for path, rows in parts for _ in rows.objects],
    )
