"""Pairs of texts to one number each: what a cross-encoder is given, and the encoder that runs it.

A pair goes through the pool as one text, the first one's length before both, so that it is cut,
sharded, retried and blamed as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memworker.models import ReadyModel
from memworker.pool import plan
from memworker.pool.encoder import Floats, OnnxEncoder
from memworker.pool.tokenize import PairTokenizer, TokenIds
from memworker.pool.worker import SlotTexts


def joined(first: str, second: str) -> str:
    """Write a pair as one text."""
    return f"{len(first)} {first}{second}"


def parted(pair: str) -> tuple[str, str]:
    """Read a pair back."""
    length, _, both = pair.partition(" ")
    return both[: int(length)], both[int(length) :]


@dataclass(frozen=True, slots=True)
class PairLoader:
    """Opens a `PairEncoder` in a worker."""

    model: ReadyModel
    costs: plan.Costs

    @property
    def dim(self) -> int:
        return self.model.spec.dim

    def __call__(self) -> PairEncoder:
        return PairEncoder(self.model, self.costs)


class PairEncoder(OnnxEncoder):
    """Runs a cross-encoder; a token is packed with its type, twice its id and one for type 1."""

    def __init__(self, model: ReadyModel, costs: plan.Costs) -> None:
        super().__init__(model, costs)
        self._pairs = PairTokenizer(
            model.tokenizer, model.max_tokens, lowercase=model.spec.lowercase
        )

    def _token_ids(self, texts: SlotTexts) -> tuple[Sequence[TokenIds], npt.NDArray[np.bool_]]:
        return self._pairs([parted(text) for text in texts.decode_all()])

    def feeds(
        self, ids: Sequence[TokenIds], shape: tuple[int, int]
    ) -> dict[str, npt.NDArray[np.int64]]:
        fed = super().feeds(ids, shape)
        packed = fed["input_ids"]
        return fed | {"input_ids": packed >> 1, "token_type_ids": packed & 1}

    def pooled(self, ids: Sequence[TokenIds], shape: tuple[int, int]) -> Floats:
        return super().pooled(ids, shape).reshape(shape[0], -1)[:, :1]
