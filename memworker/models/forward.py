"""BERT's forward pass in numpy over many texts at once, layer by layer, for calibration.

Texts lie one after another in a flat ``float32[all tokens, hidden]``; only
attention looks at where each one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.errors import ModelCorrupt
from memworker.models.spec import Activation
from memworker.models.tensors import Linear, Norm
from memworker.models.weights import BertLayer, BertWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What each linear layer of one encoder layer is given, and what the layer gives."""

    tokens: Floats
    context: Floats
    attended: Floats
    active: Floats
    result: Floats


def each_layer(
    first: Callable[[], Floats], layers: Iterable[Callable[[Floats], LayerInputs]]
) -> Iterator[LayerInputs]:
    """Run layer after layer from the rows that `first` gives, and yield what each is given.

    Raises ModelCorrupt where the weights give what is no number.
    """
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        rows = first()
    for run in layers:
        with np.errstate(over="ignore", invalid="ignore"):
            seen = run(rows)
        if not np.isfinite(seen.result).all():
            raise ModelCorrupt(
                "the weights give values that are not finite: there is no int8 of them."
                " Fetch the model again."
            )
        yield seen
        rows = seen.result


def word_rows(table: Floats, ids: list[list[int]]) -> Floats:
    """Return the rows of all texts' words, float32[all tokens, hidden].

    Raises ModelCorrupt where the tokenizer gives ids that the table does not have.
    """
    import numpy as np

    flat = np.concatenate([np.asarray(tokens, np.int64) for tokens in ids])
    if flat.max() >= len(table):
        raise ModelCorrupt(
            f"tokenizer.json gives token {flat.max()}, but the weights have {len(table)} "
            "tokens: they belong to different models. Fetch the model again."
        )
    rows: Floats = table[flat]
    return rows


def embed(bert: BertWeights, ids: list[list[int]]) -> Floats:
    """Return the normalised embeddings of all texts, float32[all tokens, hidden].

    Raises ModelCorrupt where the tokenizer gives ids that the table does not have.
    """
    import numpy as np

    words = word_rows(bert.words, ids)
    places = bert.positions[np.concatenate([np.arange(len(tokens)) for tokens in ids])]
    types = _types(ids) if bert.typed else 0
    return normalise(bert.norm, bert.shape.norm_eps, words + places + bert.token_types[types])


def _types(ids: list[list[int]]) -> NDArray[np.int64]:
    """Say which tokens are of a pair's second text: those behind the first one's end."""
    import numpy as np

    ends = [tokens.index(tokens[-1]) for tokens in ids]
    pairs = zip(ids, ends, strict=True)
    return np.concatenate([np.arange(len(tokens)) > end for tokens, end in pairs]).astype(np.int64)


def run_layer(
    bert: BertWeights, layer: BertLayer, hidden: Floats, counts: list[int]
) -> LayerInputs:
    """Run one encoder layer over texts of `counts` tokens and keep what went into its products."""
    eps = bert.shape.norm_eps
    context = attend(bert, layer, hidden, counts)
    projected = apply(layer.attention_out, context)
    attended = normalise(layer.attention_norm, eps, projected + hidden)
    active = activate(bert.shape.activation, apply(layer.feed_in, attended))
    result = normalise(layer.feed_norm, eps, apply(layer.feed_out, active) + attended)
    return LayerInputs(hidden, context, attended, active, result)


def apply(linear: Linear, rows: Floats) -> Floats:
    """Return ``rows @ weight + bias``."""
    product: Floats = rows @ linear.weight + linear.bias
    return product


def attend(bert: BertWeights, layer: BertLayer, hidden: Floats, counts: list[int]) -> Floats:
    """Return softmax(QK'/sqrt(d))V of every text, float32[all tokens, hidden]."""
    import numpy as np

    parts = [apply(linear, hidden) for linear in (layer.query, layer.key, layer.value)]
    heads, context = bert.shape.heads, np.empty_like(hidden)
    start = 0
    for count in counts:
        text = slice(start, start := start + count)
        query, key, value = (p[text].reshape(count, heads, -1).swapaxes(0, 1) for p in parts)
        scores = query @ key.swapaxes(1, 2) / np.float32(np.sqrt(query.shape[-1]))
        if bert.relative is not None:
            scores += _score_bias(bert.relative, count)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        context[text] = (shares @ value).swapaxes(0, 1).reshape(count, -1)
    return context


def _score_bias(relative: Floats, count: int) -> Floats:
    """Return what is added to the scores of so many tokens, ``[heads, queries, keys]``."""
    import numpy as np

    places = np.arange(count)
    behind = places[None, :] - places[:, None]
    bias: Floats = relative[:, behind + relative.shape[1] // 2]
    return bias


def normalise(norm: Norm, eps: float, rows: Floats) -> Floats:
    """Return the layer normalisation of each row."""
    import numpy as np

    centred = rows - rows.mean(-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(eps))
    result: Floats = centred / spread * norm.scale + norm.shift
    return result


def activate(activation: Activation, rows: Floats) -> Floats:
    """Return what stands between the two products of a feed-forward layer."""
    import numpy as np

    match activation:
        case Activation.GELU:
            return gelu(rows)
        case Activation.GELU_TANH:
            inner = np.float32(np.sqrt(2 / np.pi)) * (rows + np.float32(0.044715) * rows**3)
            active: Floats = rows * np.float32(0.5) * (1 + np.tanh(inner))
            return active
        case Activation.RELU:
            return np.maximum(rows, 0)
    raise AssertionError(f"no family has {activation}")


def gelu(rows: Floats) -> Floats:
    """Return x/2 (1 + erf(x/sqrt 2)), erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    import numpy as np

    result = np.empty_like(rows)
    # Few rows at a time: what lies between stays in the cache.
    for start in range(0, len(rows), _CACHED_ROWS):
        some = slice(start, start + _CACHED_ROWS)
        result[some] = _gelu(rows[some])
    return result


_CACHED_ROWS = 16


def _gelu(rows: Floats) -> Floats:
    import numpy as np

    far = np.abs(rows) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * far)
    tail = np.float32(1.061405429) * t + np.float32(-1.453152027)
    for factor in (1.421413741, -0.284496736, 0.254829592):
        tail = tail * t + np.float32(factor)
    erf = np.copysign(1 - tail * t * np.exp(-far * far), rows)
    result: Floats = rows * np.float32(0.5) * (1 + erf)
    return result
