"""`Reranker`: how well texts answer a query, by a cross-encoder that reads both at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from memworker.containers import NotTexts, texts_in
from memworker.errors import UsageError
from memworker.models import ready_reranker
from memworker.paths import PathGiven
from memworker.pool.pairs import joined
from memworker.pool.pool import EmbeddingPool
from memworker.pool.requests import Floats
from memworker.values import shown, whole

DEFAULT_RERANKER = "cross-encoder/ms-marco-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in what was given, and its score, from 0 to 1; higher is better."""

    index: int
    score: float


class Reranker:
    """Scores pairs of a query and a document with a cross-encoder, in a pool's worker processes.

    `model` is its name on the hub or a folder: config.json of a ForSequenceClassification with
    one label, tokenizer.json, and model.safetensors (`precision` fp32 or int8) or an ONNX file
    (as it is). `max_tokens` are those of a pair, the longer text being cut first. Workers start
    with the first pair. May be shared by threads; use it as a context manager, or call `close`.

    Raises ModelError when the model cannot be had, UsageError.
    """

    def __init__(
        self,
        model: PathGiven = DEFAULT_RERANKER,
        *,
        precision: str = "fp32",
        max_tokens: int | None = None,
        workers: int | None = None,
        offline: bool = False,
    ) -> None:
        ready = ready_reranker(model, precision=precision, max_tokens=max_tokens, offline=offline)
        self.pool = EmbeddingPool(ready, workers=workers)

    def rerank(
        self, query: str, documents: Iterable[str], *, top_n: int | None = None
    ) -> list[Ranked]:
        """Return documents by how well they answer a query, best first; `top_n` None means all.

        Of equal scores the one given first comes first. Raises UsageError, TextFailed, and what
        a pool raises.
        """
        most = _checked_top(top_n)
        scores = sigmoid(self.logits(query, documents))
        order = np.argsort(-scores, kind="stable")[:most]
        return [Ranked(int(index), float(scores[index])) for index in order]

    def logits(self, query: str, documents: Iterable[str]) -> Floats:
        """Return what the model gives each pair, float32[n], in the order of the documents."""
        embedded = self.pool.embed_rows(paired(query, documents))
        embedded.raise_first()
        return np.ascontiguousarray(embedded.vectors[:, 0])

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def paired(query: str, documents: Iterable[str]) -> list[str]:
    """Return what a pool of a cross-encoder is given. Raises UsageError for what is no text."""
    if not isinstance(query, str) or not query.strip():
        raise UsageError(f"a query is some text, not {shown(query)}")
    return [joined(query, document) for document in _texts(documents)]


def sigmoid(logits: Floats) -> Floats:
    """Return scores from 0 to 1."""
    # By tanh, which cannot overflow.
    return np.asarray((np.tanh(logits / 2) + 1) / 2, np.float32)


def _texts(documents: Any) -> Sequence[str]:
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise UsageError(f"documents are a list of texts, not {shown(documents)}")
    try:
        found = texts_in(documents)
    except NotTexts as error:
        raise UsageError(f"documents are a list of texts: {error}") from None
    texts = found if isinstance(found, list) else list(found.to_pylist())
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"documents[{place}] is a text, not {shown(text)}")
    return texts


def _checked_top(top_n: Any) -> int | None:
    found = None if top_n is None else whole(top_n)
    if top_n is not None and (found is None or found < 1):
        raise UsageError(f"top_n is a whole number of at least 1, or None, not {shown(top_n)}")
    return found
