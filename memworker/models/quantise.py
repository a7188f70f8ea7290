"""BERT's linear layers in 8 bits: what is divided out of activations, their codes, the weights'.

Every scale is fixed here, from what the calibration texts gave, so that a text's vector never
depends on its neighbours; values beyond a range are clipped to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from memworker.models import forward
from memworker.models.entry import Entry, choose_entry
from memworker.models.rounding import Grid, Int8Weight, choose_grid, quantise
from memworker.models.tensors import Linear
from memworker.models.weights import BertLayer, BertWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# How much of an input channel's size moves into the weights, found on the shipped texts.
_ATTENTION_SHARE, _FEED_SHARE = 0.8, 0.6
# A few of GELU's channels are two to four times as large as all others: they stay apart.
_MOST_APART = 8


@dataclass(frozen=True, slots=True)
class Int8Layer:
    """One encoder layer; the biases of both outputs ride on the entries.

    The last channels of the feed-forward layer are the ones apart: `feed_out` has zeros for
    them, and `apart`, float32[channels apart, hidden], is what multiplies them.
    """

    attention: Entry
    tokens: Grid
    query: Int8Weight
    query_bias: Floats
    key: Int8Weight
    value: Int8Weight
    value_bias: Floats
    context: Grid
    attention_out: Int8Weight
    feed: Entry
    attended: Grid
    feed_in: Int8Weight
    feed_bias: Floats
    active: Grid
    feed_out: Int8Weight
    apart: Floats


def quantise_bert(bert: BertWeights, ids: list[list[int]]) -> Iterator[Int8Layer]:
    """Quantise layer after layer, calibrated on the token ids of some texts.

    Raises ModelCorrupt where the weights give what is no number.
    """
    counts = [len(tokens) for tokens in ids]
    runs = (partial(_run, bert, layer, counts) for layer in bert.layers)
    seen = forward.each_layer(partial(forward.embed, bert, ids), runs)
    for layer, inputs in zip(bert.layers, seen, strict=True):
        yield quantise_layer(layer, inputs)


def _run(
    bert: BertWeights, layer: BertLayer, counts: list[int], rows: Floats
) -> forward.LayerInputs:
    return forward.run_layer(bert, layer, rows, counts)


def quantise_layer(layer: BertLayer, seen: forward.LayerInputs) -> Int8Layer:
    """Quantise one layer, given what its products saw of the calibration texts."""
    import numpy as np

    parts = (layer.query, layer.key, layer.value)
    attention = choose_entry(seen.tokens, parts, layer.attention_out.bias, _ATTENTION_SHARE)
    query, key, value = (attention.of_linear(part) for part in parts)
    together = np.concatenate([query.weight, key.weight, value.weight], axis=1)
    tokens, all_three = _fit(together, attention.of_rows(seen.tokens))
    context, attention_out = _fit(layer.attention_out.weight, seen.context)
    feed = choose_entry(seen.attended, (layer.feed_in,), layer.feed_out.bias, _FEED_SHARE)
    order, split = _largest_last(seen.active)
    feed_in = feed.of_linear(Linear(layer.feed_in.weight[:, order], layer.feed_in.bias[order]))
    attended, feed_in_weight = _fit(feed_in.weight, feed.of_rows(seen.attended))
    outer = layer.feed_out.weight[order]
    active, feed_out = _fit(outer[:split], seen.active[:, order[:split]])
    hidden = len(attention.offset)
    return Int8Layer(
        attention=attention,
        tokens=tokens,
        query=_columns(all_three, slice(0, hidden)),
        query_bias=query.bias,
        key=_columns(all_three, slice(hidden, 2 * hidden)),
        value=_columns(all_three, slice(2 * hidden, None)),
        value_bias=value.bias,
        context=context,
        attention_out=attention_out,
        feed=feed,
        attended=attended,
        feed_in=feed_in_weight,
        feed_bias=feed_in.bias,
        active=active,
        feed_out=_with_zeros(feed_out, len(outer)),
        apart=outer[split:],
    )


def _fit(weight: Floats, rows: Floats) -> tuple[Grid, Int8Weight]:
    """Choose the codes of what enters a product, and round the weights to go with them."""
    grid = choose_grid(rows, weight)
    return grid, quantise(weight, grid.centred(rows))


def _columns(weight: Int8Weight, those: slice) -> Int8Weight:
    import numpy as np

    return Int8Weight(np.ascontiguousarray(weight.codes[:, those]), weight.scale[those])


def _with_zeros(weight: Int8Weight, rows: int) -> Int8Weight:
    import numpy as np

    missing = rows - len(weight.codes)
    return Int8Weight(np.pad(weight.codes, ((0, missing), (0, 0))), weight.scale)


def _largest_last(rows: Floats) -> tuple[NDArray[np.int64], int]:
    """Return the channels in their order, the largest ones at the end, and where those begin."""
    import numpy as np

    width = rows.shape[1]
    split = width - min(_MOST_APART, width // 2)
    apart = np.sort(np.argsort(rows.max(0), kind="stable")[split:])
    others = np.setdiff1d(np.arange(width), apart)
    order: NDArray[np.int64] = np.concatenate([others, apart])
    return order, split
