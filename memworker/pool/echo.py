"""An encoder without a model: measures and tests everything around inference.

Its vectors are a function of the text alone (length, end bytes and a
checksum of the bytes' sum), finite and never zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from memworker.pool.arena import RowStatus
from memworker.pool.worker import SlotResults, SlotTexts


@dataclass(frozen=True, slots=True)
class EchoLoader:
    """Loads an `EchoEncoder` of `dim` dimensions; the bytes are measured, see pool/budget."""

    dim: int = 384
    least_dim: ClassVar[int] = 3
    worker_bytes: ClassVar[int] = 22 << 20
    token_bytes: ClassVar[int] = 0

    def __call__(self) -> EchoEncoder:
        return EchoEncoder(self.dim)


@dataclass(frozen=True, slots=True)
class EchoEncoder:
    """Gives each text a vector computed from its bytes, at memory speed."""

    dim: int

    def encode(self, texts: SlotTexts, rows: SlotResults) -> Iterator[None]:
        """Write vectors; a text counts as one token a byte, at least one."""
        starts, ends = texts.offsets[:-1], texts.offsets[1:]
        lengths = (ends - starts).astype(np.int32)
        sums = np.concatenate(([0], np.cumsum(texts.data[: ends[-1]], dtype=np.int64)))
        rows.vectors[:] = 0.0
        rows.vectors[:, 0] = 1.0
        rows.vectors[:, 1] = lengths
        rows.vectors[:, 2] = (sums[ends] - sums[starts]) % 65_521
        rows.tokens[:] = np.maximum(lengths, 1)
        rows.status[:] = RowStatus.OK
        rows.real_tokens = rows.padded_tokens = int(rows.tokens.sum())
        yield
