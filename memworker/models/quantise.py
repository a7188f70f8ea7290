"""BERT's linear layers in 8 bits: smoothing, scales and rounding, calibrated on texts.

Activations get one scale a token when they are run, so that a text's vector
never depends on its neighbours; weights get one scale an output column here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.models import forward
from memworker.models.weights import BertWeights, Linear

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# AVX2 multiplies u8 by s8 and adds two neighbours in 16 bits, which saturate where weights
# go beyond: 255 * 63 * 2 fits. Processors that could take 127 use 63 too, for equal vectors.
WEIGHT_LIMIT = 63
_ALPHA = 0.5


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """``x @ (weight * scale) + bias``: int8[in, out], float32[out], float32[out]."""

    weight: NDArray[np.int8]
    scale: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """One encoder layer; what enters attention and the first feed-forward is multiplied first."""

    attention_factor: Floats
    query: Int8Linear
    key: Int8Linear
    value: Int8Linear
    attention_out: Int8Linear
    feed_factor: Floats
    feed_in: Int8Linear
    feed_out: Int8Linear


def quantise_bert(bert: BertWeights, ids: list[list[int]]) -> list[Int8Layer]:
    """Quantise every layer, calibrated on the token ids of some texts."""
    import numpy as np

    hidden, counts = forward.embed(bert, ids), [len(tokens) for tokens in ids]
    layers = []
    for layer in bert.layers:
        seen = forward.run_layer(bert, layer, hidden, counts)
        smooth = smoothing(seen.attention, [layer.query, layer.key, layer.value])
        query, key, value = (
            quantise(part, smooth) for part in (layer.query, layer.key, layer.value)
        )
        feed = smoothing(seen.feed_in, [layer.feed_in])
        layers.append(
            Int8Layer(
                attention_factor=np.reciprocal(smooth),
                query=query,
                key=key,
                value=value,
                attention_out=quantise(layer.attention_out),
                feed_factor=np.reciprocal(feed),
                feed_in=quantise(layer.feed_in, feed),
                feed_out=quantise(layer.feed_out),
            )
        )
        hidden = seen.result
    return layers


def smoothing(rows: Floats, linears: list[Linear]) -> Floats:
    """Return SmoothQuant's divisor of each input channel: max|x|^a / max|w|^(1-a).

    Xiao et al. 2022, equation 4. Rounded to quarter powers of two, so that the
    last bits of one processor's sums cannot make another model of it.
    """
    import numpy as np

    strongest = np.maximum(np.abs(rows).max(0), 1e-5)
    heaviest = np.max([np.abs(linear.weight).max(1) for linear in linears], axis=0)
    factor = _ALPHA * np.log2(strongest) - (1 - _ALPHA) * np.log2(np.maximum(heaviest, 1e-5))
    rounded: Floats = np.exp2(np.rint(4 * factor) / 4).astype(np.float32)
    return rounded


def quantise(linear: Linear, smooth: Floats | None = None) -> Int8Linear:
    """Round the weights, their rows multiplied by `smooth`, to a grid of each column's own."""
    import numpy as np

    weight = linear.weight if smooth is None else linear.weight * smooth[:, None]
    scale = np.maximum(np.abs(weight).max(0), 1e-30) / WEIGHT_LIMIT
    rounded = np.clip(np.rint(weight / scale), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
    return Int8Linear(rounded, scale.astype(np.float32), linear.bias)
