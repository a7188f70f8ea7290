"""BERT's linear layers in 8 bits: what is divided out of activations, and weights as codes.

Activations get one scale a token when they are run, so that a text's vector
never depends on its neighbours; weights get one scale an output column here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.models import forward
from memworker.models.weights import BertLayer, BertWeights, Linear, Norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# AVX2 multiplies u8 by s8 and adds each two neighbouring products in 16 bits, which saturate:
# 255 * 128 still fits. Two weights of one sign may therefore sum up to 128 in size, which gives
# a column steps half as large again as keeping every weight within 63. Processors that could
# take more do not, so that they all give the same vectors.
PAIR_LIMIT = 128
_CODE_LIMIT = 127
# How much of an input channel's size moves into the weights, found on the shipped texts.
_ATTENTION_SHARE, _FEED_SHARE = 0.8, 0.6


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A matrix as ``codes * scale``: int8[in, out], float32[out]."""

    codes: NDArray[np.int8]
    scale: Floats


@dataclass(frozen=True, slots=True)
class Entry:
    """How hidden rows x enter a product: as ``(x + offset) / divisor``, float32[hidden] each.

    The normalisation before emits them so at no cost. `offset` is the bias of
    what is added to x afterwards: times the divisor, the rows bring it along.
    """

    divisor: Floats
    offset: Floats

    def of_norm(self, norm: Norm) -> Norm:
        """Return the normalisation that emits rows as they enter."""
        return Norm(norm.scale / self.divisor, (norm.shift + self.offset) / self.divisor)

    def of_linear(self, linear: Linear) -> Linear:
        """Return the product that gives of entering rows what `linear` gives of plain ones."""
        weight = linear.weight * self.divisor[:, None]
        return Linear(weight, linear.bias - self.offset @ linear.weight)


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """One encoder layer; the biases of both outputs ride on the entries."""

    attention: Entry
    query: Int8Weight
    key: Int8Weight
    value: Int8Weight
    attention_bias: Floats
    attention_out: Int8Weight
    feed: Entry
    feed_in: Int8Weight
    feed_bias: Floats
    feed_out: Int8Weight


def quantise_bert(bert: BertWeights, ids: list[list[int]]) -> list[Int8Layer]:
    """Quantise every layer, calibrated on the token ids of some texts."""
    hidden, counts = forward.embed(bert, ids), [len(tokens) for tokens in ids]
    layers = []
    for layer in bert.layers:
        seen = forward.run_layer(bert, layer, hidden, counts)
        layers.append(quantise_layer(layer, seen))
        hidden = seen.result
    return layers


def quantise_layer(layer: BertLayer, seen: forward.LayerInputs) -> Int8Layer:
    """Quantise one layer, given what its products saw of the calibration texts."""
    import numpy as np

    parts = (layer.query, layer.key, layer.value)
    attention = choose_entry(seen.attention, parts, layer.attention_out.bias, _ATTENTION_SHARE)
    query, key, value = (attention.of_linear(part) for part in parts)
    feed = choose_entry(seen.feed_in, (layer.feed_in,), layer.feed_out.bias, _FEED_SHARE)
    feed_in = feed.of_linear(layer.feed_in)
    return Int8Layer(
        attention=attention,
        query=quantise(query.weight),
        key=quantise(key.weight),
        value=quantise(value.weight),
        attention_bias=np.concatenate([query.bias, key.bias, value.bias]),
        attention_out=quantise(layer.attention_out.weight),
        feed=feed,
        feed_in=quantise(feed_in.weight),
        feed_bias=feed_in.bias,
        feed_out=quantise(layer.feed_out.weight),
    )


def choose_entry(rows: Floats, linears: tuple[Linear, ...], offset: Floats, share: float) -> Entry:
    """Balance each input channel between activations and weights, |x|^a / |w|^(1-a).

    After SmoothQuant (Xiao et al. 2022, equation 4), but with the fourth-power
    mean of x and the square mean of w for their maxima: one odd token of the
    calibration texts no longer decides. Rounded to quarter powers of two, so
    that the last bits of one processor's sums cannot make another model of it.
    """
    import numpy as np

    strength = np.power(np.power(rows + offset, 4, dtype=np.float64).mean(0), 0.25)
    weight = np.mean([np.square(part.weight).mean(1) for part in linears], axis=0)
    balance = share * np.log2(np.maximum(strength, 1e-3))
    balance -= (1 - share) / 2 * np.log2(np.maximum(weight, 1e-8))
    return Entry(np.exp2(np.rint(4 * balance) / 4).astype(np.float32), offset)


def quantise(weight: Floats) -> Int8Weight:
    """Round a matrix to codes in steps of each column's own, safe on AVX2."""
    import numpy as np

    even, odd = weight[0::2], weight[1::2]
    with_partner = even[: len(odd)]
    together = np.where(with_partner * odd > 0, np.abs(with_partner) + np.abs(odd), 0)
    steps = np.maximum(together.max(0, initial=0) / PAIR_LIMIT, np.abs(weight).max(0) / _CODE_LIMIT)
    scale = np.maximum(steps, 1e-30).astype(np.float32)
    codes = np.clip(np.rint(weight / scale), -_CODE_LIMIT, _CODE_LIMIT)
    # Rounding both of a pair up may carry their sum one beyond.
    first = codes[0::2][: len(odd)]
    codes[1::2] = np.clip(codes[1::2], -PAIR_LIMIT - np.minimum(first, 0), None)
    codes[1::2] = np.clip(codes[1::2], None, PAIR_LIMIT - np.maximum(first, 0))
    return Int8Weight(codes.astype(np.int8), scale)
