"""A caller's texts, or token ids, as rows of bytes on their way into slots.

Many rows stay in Arrow's layout, as they came or are converted at once. A few rows,
which is what concurrent callers bring, are plain `bytes`: for them Arrow's and
numpy's cost a call is most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.arrow_values import decoded
from memworker.containers import texts_in
from memworker.errors import TextFailed, UsageError
from memworker.pool.arena import Slot
from memworker.values import shown

Int64s = npt.NDArray[np.int64]

_FEW = 16
_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


class RowSource(Protocol):
    """Rows of UTF-8 or of int32 token ids; `lengths` is their bytes, int64[n]."""

    @property
    def lengths(self) -> Int64s: ...
    @property
    def longest(self) -> int: ...

    def fill(self, slot: Slot, which: Int64s) -> None:
        """Write some rows into a slot, in the order of `which`."""

    def pick(self, which: Int64s) -> list[bytes]:
        """Give some rows one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class FewRows:
    """Rows as `bytes`."""

    rows: list[bytes]
    lengths: Int64s
    longest: int

    def fill(self, slot: Slot, which: Int64s) -> None:
        fill_slot(slot, self.pick(which))

    def pick(self, which: Int64s) -> list[bytes]:
        return self.rows if len(self.rows) == 1 else [self.rows[row] for row in which.tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class ArrowRows:
    """Rows as an Arrow array (large_string or large_binary[n], no nulls)."""

    array: pa.Array
    lengths: Int64s

    @property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    def fill(self, slot: Slot, which: Int64s) -> None:
        taken = self.array.take(pa.array(which))
        _, offsets, data = taken.buffers()
        ends = np.frombuffer(offsets, np.int64)[taken.offset : taken.offset + len(taken) + 1]
        text = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
        slot.fill((ends - ends[0]).astype(np.int32), text[ends[0] : ends[-1]])

    def pick(self, which: Int64s) -> list[bytes]:
        taken: list[bytes] = self.array.take(pa.array(which)).cast(pa.large_binary()).to_pylist()
        return taken


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Rows of token ids of the model's own tokenizer, special ones left out: Arrow binary[n].

    They get what `submit_tokens` gives them; int32 each.
    """

    array: pa.Array

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: pa.Array) -> TokenRows:
        """Give some rows."""
        return TokenRows(self.array.take(rows))

    def slice(self, start: int, length: int) -> TokenRows:
        """Give some rows, uncopied."""
        return TokenRows(self.array.slice(start, length))

    def rows(self) -> RowSource:
        """Give what is written into slots."""
        return _arrow_rows(self.array.cast(pa.large_binary()))


def fill_slot(slot: Slot, rows: list[bytes]) -> None:
    """Write rows into a slot, in Arrow's layout."""
    ends = np.array([0, *accumulate(map(len, rows))], np.int32)
    slot.fill(ends, np.frombuffer(b"".join(rows), np.uint8))


def text_rows(texts: Sequence[str] | pa.Array) -> RowSource:
    """Take texts: a list of str or another container of them, or an Arrow string array.

    Raises TypeError for what is not `str`, TextFailed for a lone surrogate; both
    name the position.
    """
    listed = texts_in(texts)
    if not isinstance(listed, list):
        return _arrow_rows(_checked_array(listed))
    if not set(map(type, listed)) <= {str}:
        _refuse_other_types(listed)
    try:
        if len(listed) <= _FEW:
            # Not text.encode(): a subclass may answer in its own way.
            return _few_rows([str.encode(text) for text in listed])
        return _arrow_rows(pa.array(listed, pa.large_string()))
    except UnicodeEncodeError:
        raise _surrogate_error(listed) from None


def token_rows(rows: Sequence[Sequence[int]]) -> RowSource:
    """Take rows of token ids, int32 each.

    Raises UsageError for what is no list of whole numbers from 0 up to 2^31.
    """
    packed = [_packed_ids(ids, position) for position, ids in enumerate(rows)]
    if len(packed) <= _FEW:
        return _few_rows(packed)
    return _arrow_rows(pa.array(packed, pa.large_binary()))


def _packed_ids(ids: Sequence[int], position: int) -> bytes:
    try:
        row = np.asarray(ids if len(ids) else np.zeros(0, np.int64))
        fits = row.ndim == 1 and row.dtype.kind in "iu"
        if fits and row.min(initial=0) >= 0 and row.max(initial=0) < 1 << 31:
            return row.astype(np.int32).tobytes()
    except (TypeError, ValueError, OverflowError):
        pass  # told below, as what can be read and is no id
    raise UsageError(
        f"rows[{position}] must be a list of token ids, whole numbers from 0, not {shown(ids)}"
    )


def _few_rows(rows: list[bytes]) -> FewRows:
    lengths = [len(row) for row in rows]
    return FewRows(rows, np.array(lengths, np.int64), max(lengths, default=0))


def _arrow_rows(array: pa.Array) -> ArrowRows:
    if len(array) == 0:
        return ArrowRows(array, np.zeros(0, np.int64))
    offsets = np.frombuffer(array.buffers()[1], np.int64)
    return ArrowRows(array, np.diff(offsets[array.offset : array.offset + len(array) + 1]))


def _checked_array(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    texts = _decoded(texts)
    kind = texts.type
    if not any(test(kind) for test in _TEXT_TYPES):
        raise TypeError(f"texts must be an Arrow string array, not {texts.type}")
    texts = texts.cast(pa.large_string())
    if texts.null_count:
        raise TypeError(f"texts must not hold nulls; {texts.null_count} found")
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _decoded(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if isinstance(texts, pa.Array):
        return decoded(texts)
    if not texts.chunks:
        kind = texts.type
        coded = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
        return pa.array([], kind.value_type if coded else kind)
    return pa.chunked_array([decoded(chunk) for chunk in texts.chunks])


def _refuse_other_types(texts: list[object]) -> None:
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}] is {type(text).__name__}, not str: {shown(text)}")


def _surrogate_error(texts: list[str]) -> TextFailed:
    for position, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return TextFailed(
                f"texts[{position}] is not valid Unicode (a lone surrogate at character"
                f" {error.start}). Clean it, for example with"
                " text.encode('utf-8', 'replace').decode().",
                position,
            )
    raise AssertionError("some text could not be encoded, and then all could")
