"""How near another precision comes to fp32, on the user's own texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memworker.errors import NoRows, UsageError
from memworker.models import Precision, ready_model
from memworker.pool.choice import cosines, unit
from memworker.pool.pool import DEFAULT_MODEL, EmbeddingPool

Floats = npt.NDArray[np.float32]
_NEIGHBOURS = 10
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Agreement:
    """What fp32 and another precision say of the same texts.

    `recall_at_10` is the share of each text's ten nearest others under fp32
    that are among its ten nearest under `precision`, averaged over texts.
    """

    model: str
    precision: str
    texts: int
    mean_cosine: float
    min_cosine: float
    recall_at_10: float

    def told(self) -> str:
        """Say it in one line."""
        return (
            f"{self.model} {self.precision} against fp32 on {self.texts:,} different texts: "
            f"cosine {self.mean_cosine:.4f} on average, {self.min_cosine:.4f} at least; "
            f"recall@{_NEIGHBOURS} {self.recall_at_10:.3f}"
        )


def compare_precision(
    texts: Iterable[str], *, model: str | Path = DEFAULT_MODEL, precision: str = "int8"
) -> Agreement:
    """Embed texts in fp32 and in another precision, and compare the two.

    Raises UsageError for fp32 itself or a precision that the model does not
    have, and NoRows where there are not two different texts.
    """
    if precision == Precision.FP32:
        raise UsageError("fp32 is what others are compared with; name int8 or bf16")
    # A precision that is not there is refused before anything is embedded.
    wanted = ready_model(model, precision=precision)
    # Equal texts are each other's nearest in any precision.
    different = list(dict.fromkeys(texts))
    if len(different) < 2:
        raise NoRows(f"there are {len(different)} different texts; a comparison needs two")
    exact = unit(_embed(model, Precision.FP32, different))
    small = unit(_embed(model, precision, different))
    near = cosines(exact, small)
    return Agreement(
        model=wanted.spec.name,
        precision=precision,
        texts=len(different),
        mean_cosine=float(near.mean()),
        min_cosine=float(near.min()),
        recall_at_10=_recall(exact, small),
    )


def _embed(model: str | Path, precision: str, texts: list[str]) -> Floats:
    with EmbeddingPool(model, precision=precision) as pool:
        return pool.embed(texts)


def _recall(exact: Floats, small: Floats) -> float:
    count = min(_NEIGHBOURS, len(exact) - 1)
    shared = 0
    for start in range(0, len(exact), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(exact)))
        near, also = (_nearest(vectors, rows, count) for vectors in (exact, small))
        shared += sum(len(np.intersect1d(*pair)) for pair in zip(near, also, strict=True))
    return shared / (count * len(exact))


def _nearest(vectors: Floats, rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the `count` nearest others of each row, int64[rows, count]."""
    scores = vectors[rows] @ vectors.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-scores, count - 1, axis=1)[:, :count]
