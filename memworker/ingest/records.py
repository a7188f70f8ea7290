"""The records that readers deliver: batches of rows, and the rows they refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.errors import UsageError

SCOPE_COLUMNS = ("user_id", "agent_id", "run_id")
EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Fields:
    """Which input field becomes which column.

    `scopes` holds (column, field) pairs: ``(("user_id", "author"),)`` takes the
    column `user_id` from the field `author`. Fields that none of `text`, `id`
    and `scopes` names go into the metadata, unless `metadata` is false.
    """

    text: str = "text"
    id: str = "id"
    scopes: tuple[tuple[str, str], ...] = ()
    metadata: bool = True

    def __post_init__(self) -> None:
        columns = [column for column, _ in self.scopes]
        for column in columns:
            if column not in SCOPE_COLUMNS:
                raise UsageError(f"no scope {column!r}; there are {', '.join(SCOPE_COLUMNS)}")
            if columns.count(column) > 1:
                raise UsageError(f"scope {column!r} is given twice; name one field for it")

    @property
    def required(self) -> tuple[str, ...]:
        """Fields that the input must have: text, scopes, and an id field named on purpose."""
        chosen_id = () if self.id == "id" else (self.id,)
        return (self.text, *chosen_id, *(field for _, field in self.scopes))

    @property
    def used(self) -> frozenset[str]:
        """Fields that do not go into the metadata."""
        return frozenset((self.text, self.id, *(field for _, field in self.scopes)))


@dataclass(slots=True)
class ReadProgress:
    """How far reading has come, in bytes as they lie on the disk; `total` is None if unknown."""

    total: int | None = None
    read: int = 0

    @property
    def share(self) -> float | None:
        """Share of the input that has been read, 0 to 1; None if the total is unknown."""
        return min(1.0, self.read / self.total) if self.total else None


@dataclass(frozen=True, slots=True)
class InputBatch:
    """Accepted rows of one input, in input order.

    `texts` has no nulls. `ids` is None, or null where a row has no id. `scopes`
    holds the mapped columns, "" where a row has none. `metadata` is None, or
    holds JSON objects as strings, null where a row has no other fields. `lines`
    are 1-based line (or row) numbers in `path`; `ordinals` count all rows of
    all inputs from 0, rejected rows included.
    """

    path: str
    texts: pa.Array
    ids: pa.Array | None
    scopes: dict[str, pa.Array]
    metadata: pa.Array | None
    lines: npt.NDArray[np.int64]
    ordinals: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was refused: where it stands, why, and how it begins."""

    path: str
    line: int
    ordinal: int
    reason: str
    id: str | None = None
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of rows of one input: those accepted and those refused."""

    batch: InputBatch
    rejects: tuple[Reject, ...] = ()

    @property
    def read(self) -> int:
        """Rows seen: accepted and refused."""
        return self.batch.rows + len(self.rejects)
