"""The linear layers of encoders with rotary positions in 8 bits.

Weights keep fixed codes. What enters a product gets one fixed scale (`Grid`), found on the
calibration texts, or one for each token, found as it comes. Both depend on the token alone, so
that a text's vector never depends on its neighbours. A scale a token costs a pass more over the
rows; it is for what has few numbers far larger than all others, in tokens that no calibration
foresees: what a gate lets through, and all of a decoder's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from memworker.models import forward, forward_rotary
from memworker.models.entry import choose_entry
from memworker.models.rotary import Reach, RotaryLayer, RotaryShape, RotaryWeights
from memworker.models.rounding import Grid, Int8Weight, choose_grid, quantise
from memworker.models.tensors import Linear

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# How much of an input channel's size moves into the weights: with fixed scales as BERT's, with
# a scale a token half of it.
_ATTENTION_SHARE, _FEED_SHARE, _HALF = 0.8, 0.6, 0.5
_MOST_CODE = 127
_LEAST_SCALE = 1e-30


@dataclass(frozen=True, slots=True)
class Int8Product:
    weight: Int8Weight
    bias: Floats


@dataclass(frozen=True, slots=True)
class Int8RotaryLayer:
    """One layer; a grid of None is a scale a token."""

    attention_divisor: Floats
    tokens: Grid | None
    query: Int8Product
    key: Int8Product
    value: Int8Product
    context: Grid | None
    attention_out: Int8Product
    feed_divisor: Floats
    attended: Grid | None
    gate: Int8Product
    up: Int8Product
    active: Grid | None
    down: Int8Product


def quantise_rotary(
    weights: RotaryWeights, ids: list[list[int]], *, fixed: bool
) -> Iterator[Int8RotaryLayer]:
    """Quantise layer after layer, calibrated on the token ids of some texts.

    Where `fixed`, all but what a gate lets through has one scale. Raises ModelCorrupt
    where the weights give what is no number.
    """
    counts, shape = [len(tokens) for tokens in ids], weights.shape
    pairs = list(zip(weights.layers, shape.reach, strict=True))
    runs = (partial(_run, shape, reach, layer, counts) for layer, reach in pairs)
    seen = forward.each_layer(partial(forward_rotary.embed, weights, ids), runs)
    for layer, inputs in zip(weights.layers, seen, strict=True):
        yield quantise_layer(layer, inputs, fixed=fixed)


def _run(
    shape: RotaryShape, reach: Reach, layer: RotaryLayer, counts: list[int], rows: Floats
) -> forward.LayerInputs:
    return forward_rotary.run_layer(shape, reach, layer, rows, counts)


def quantise_layer(
    layer: RotaryLayer, seen: forward.LayerInputs, *, fixed: bool
) -> Int8RotaryLayer:
    """Quantise one layer, given what its products saw of the calibration texts."""
    asking = (layer.query, layer.key, layer.value)
    divisor = _divisor(seen.tokens, asking, _ATTENTION_SHARE if fixed else _HALF)
    tokens, (query, key, value) = _fit(asking, seen.tokens, divisor, fixed)
    context, (attention_out,) = _fit((layer.attention_out,), seen.context, None, fixed)
    # What the gate lets through is divided where `up` brings it forth.
    through = _divisor(seen.active, (layer.down,), _HALF)
    up = Linear(layer.up.weight / through, layer.up.bias / through)
    active, (down,) = _fit((layer.down,), seen.active, through, fixed=False)
    feed_divisor = _divisor(seen.attended, (layer.gate, up), _FEED_SHARE if fixed else _HALF)
    attended, (gate, up_) = _fit((layer.gate, up), seen.attended, feed_divisor, fixed)
    return Int8RotaryLayer(
        attention_divisor=divisor,
        tokens=tokens,
        query=query,
        key=key,
        value=value,
        context=context,
        attention_out=attention_out,
        feed_divisor=feed_divisor,
        attended=attended,
        gate=gate,
        up=up_,
        active=active,
        down=down,
    )


def _divisor(rows: Floats, linears: tuple[Linear, ...], share: float) -> Floats:
    import numpy as np

    nothing = np.zeros(rows.shape[1], np.float32)
    return choose_entry(rows, linears, nothing, share).divisor


def _fit(
    linears: tuple[Linear, ...], rows: Floats, divisor: Floats | None, fixed: bool
) -> tuple[Grid | None, list[Int8Product]]:
    """Choose the codes of what enters some products, and round their weights to go with them."""
    import numpy as np

    weight = np.concatenate([linear.weight for linear in linears], axis=1)
    if divisor is not None:
        rows, weight = rows / divisor, weight * divisor[:, None]
    grid = choose_grid(rows, weight) if fixed else None
    codes = quantise(weight, _by_token(rows) if grid is None else grid.centred(rows))
    products, start = [], 0
    for linear in linears:
        those = slice(start, start := start + len(linear.bias))
        part = Int8Weight(np.ascontiguousarray(codes.codes[:, those]), codes.scale[those])
        products.append(Int8Product(part, linear.bias))
    return grid, products


def _by_token(rows: Floats) -> Floats:
    """Return what the codes of rows stand for where each row has its own scale."""
    import numpy as np

    scale = np.maximum(np.abs(rows).max(1, keepdims=True) / _MOST_CODE, _LEAST_SCALE)
    result: Floats = np.rint(rows / scale) * scale
    return result
