"""What a worker sends, taken apart and checked before anything acts on it.

A worker runs native code on texts of unknown origin, so nothing that it says is
believed: not the length of a message, not a count, not that it is its turn. What
cannot be true is `Nonsense`, and ends the worker that said it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memworker.pool import messages
from memworker.pool.arena import RowStatus, Slot, SlotShape

_RECORD_BYTES = 4096
_UTF8_BYTES = 4
_STATUSES = len(RowStatus)

Floats: TypeAlias = npt.NDArray[np.float32]


class Nonsense(Exception):
    """A worker said what cannot be; the message completes "it was ended, for it …"."""


def longest_message(shapes: tuple[SlotShape, ...]) -> int:
    """Give the bytes of a shard's answer when every row failed with the longest reason."""
    rows = max(shape.rows for shape in shapes)
    return _RECORD_BYTES + rows * (messages.REASON_CHARS * _UTF8_BYTES + 16)


class Incoming:
    """Cuts a stream of bytes into messages, in whatever pieces it comes.

    Each is four bytes of length, big end first, and as many bytes (as
    `multiprocessing.connection` frames it).
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._half = bytearray()
        self._needed = 0

    @property
    def half(self) -> bool:
        """Whether a message has begun to come and is not whole."""
        return bool(self._half)

    def feed(self, data: bytes) -> Iterator[messages.ToParent]:
        """Take more bytes, and yield the messages that are whole now; raises Nonsense."""
        if self._half:
            self._half += data
            if len(self._half) < self._needed:
                return
            data = bytes(self._half)
            self._half.clear()
        start = 0
        while start < len(data):
            end = self._end(data, start)
            if end > len(data):
                self._half += data[start:]
                self._needed = end - start
                return
            yield _decoded(data[start + messages.HEAD_BYTES : end])
            start = end

    def _end(self, data: bytes, start: int) -> int:
        """Give where a message ends, or as much of it as tells."""
        body = start + messages.HEAD_BYTES
        if len(data) < body:
            return body
        size = int.from_bytes(data[start:body], "big")
        if size > self._longest:
            raise Nonsense(f"announced a message of {size:,} bytes")
        return body + size


def _decoded(message: bytes) -> messages.ToParent:
    try:
        known: messages.ToParent = messages.decode_for_parent(message)
        return known
    except Exception as error:  # whatever it is, it comes of the worker's bytes alone
        raise Nonsense(f"sent what is no message ({error})") from error


@dataclass(frozen=True, slots=True)
class Result:
    """A shard's rows as its worker gave them: checked, and out of its hands but for the vectors.

    `vectors` float32[n, dim] is the worker's memory still, to be copied from once;
    `tokens` int32[n] and `status` uint8[n] (`RowStatus`) are copies, so that what was
    checked is what is used; `cut` bool[n] marks what was truncated.
    """

    vectors: Floats
    tokens: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    cut: npt.NDArray[np.bool_]
    reasons: dict[int, str]
    truncated: int
    failed: int
    real_tokens: int
    padded_tokens: int
    tokenize_s: float
    encode_s: float


def checked(done: messages.Done, slot: Slot, rows: int, taken_s: float) -> Result:
    """Take the `rows` rows that a slot was filled with `taken_s` seconds ago; raises Nonsense."""
    status = slot.status[:rows].copy()
    counts = np.bincount(status, minlength=_STATUSES)
    if len(counts) > _STATUSES:
        row = int(status.argmax())
        raise Nonsense(f"gave row {row} of {rows} the status {status[row]}")
    tokens = slot.tokens[:rows].copy()
    if tokens.min() < 0:
        row = int(tokens.argmin())
        raise Nonsense(f"counted {tokens[row]} tokens in row {row} of {rows}")
    if done.reasons and max(done.reasons) >= rows:
        raise Nonsense(f"gave a reason for row {max(done.reasons)} of {rows}")
    return Result(
        vectors=slot.vectors[:rows],
        tokens=tokens,
        status=status,
        cut=status == int(RowStatus.TRUNCATED),
        reasons=done.reasons,
        truncated=int(counts[RowStatus.TRUNCATED]),
        failed=int(counts[RowStatus.FAILED]),
        real_tokens=done.real_tokens,
        padded_tokens=done.padded_tokens,
        # One thread works on a shard; more than passed would spoil the pool's figures for all.
        tokenize_s=min(done.tokenize_s, taken_s),
        encode_s=min(done.encode_s, taken_s),
    )
