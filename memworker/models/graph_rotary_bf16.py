"""An encoder with rotary positions as OpenVINO's own graph, for products in bf16.

As in `graph_bf16`, weights stay float32 in the file, and everything is written out in plain
operators, which OpenVINO fuses as it knows them: turning, root mean squares, attention.
"""

from __future__ import annotations

from typing import Any

from memworker.models.parts_bf16 import (
    MASKED,
    axis,
    constant,
    floats,
    ints,
    layer_norm,
    linear,
    masked_scores,
)
from memworker.models.rotary import (
    GateKind,
    Norms,
    RotaryLayer,
    RotaryShape,
    RotaryWeights,
    Turn,
    angles,
)
from memworker.models.tensors import Linear, Norm

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "rotary-bf16-1"


def token_rows(weights: RotaryWeights, ids: Any, mask: Any) -> Any:
    """Return the last hidden state, float32[n, tokens, hidden]."""
    from openvino import opset15 as op

    shape = weights.shape
    rows = op.gather(op.constant(weights.words), ids, axis(0))
    rows = _norm(shape, weights.norm, rows)
    length = op.gather(op.shape_of(ids, "i64"), axis(1), axis(0))
    masks = _masks(shape, mask, length)
    tables = {turn: _tables(shape, turn, length) for turn in shape.turns}
    for layer, reach in zip(weights.layers, shape.reach, strict=True):
        rows = _layer(shape, layer, rows, masks[reach.window], tables[reach.turn])
    return _norm(shape, weights.last_norm, rows)


def _masks(shape: RotaryShape, mask: Any, length: Any) -> dict[int, Any]:
    """Return what is added to scores, ``[n, 1, 1 or tokens, tokens]``, by window."""
    from openvino import opset15 as op

    below = masked_scores(mask)
    places = op.range(axis(0), length, axis(1), "i64")
    behind = op.subtract(op.unsqueeze(places, ints(1)), op.unsqueeze(places, ints(0)))
    masks = {}
    for window in {reach.window for reach in shape.reach}:
        hidden = []
        if shape.causal:
            hidden.append(op.less(behind, ints(0)))
        if window:
            hidden.append(op.greater(op.abs(behind), ints(window)))
        masks[window] = below
        for unseen in hidden:
            scores = op.select(unseen, floats(MASKED), floats(0.0))
            masks[window] = op.add(masks[window], scores)
    return masks


def _tables(shape: RotaryShape, turn: Turn, length: Any) -> tuple[Any, Any]:
    """Return cosines and sines of the places there are, ``[tokens, head]``."""
    import numpy as np
    from openvino import opset15 as op

    row = op.unsqueeze(length, ints(0))
    tables = (np.tile(table[: shape.positions], 2) for table in angles(shape, turn))
    cosines, sines = (op.slice(constant(t), ints(0), row, ints(1), ints(0)) for t in tables)
    return cosines, sines


def _layer(
    shape: RotaryShape, layer: RotaryLayer, rows: Any, mask: Any, tables: tuple[Any, Any]
) -> Any:
    from openvino import opset15 as op

    entering = _norm(shape, layer.attention_norms.before, rows)
    context = _attend(shape, layer, entering, mask, tables)
    rows = _join(shape, layer.attention_norms, linear(context, layer.attention_out), rows)
    entering = _norm(shape, layer.feed_norms.before, rows)
    gate, up = linear(entering, layer.gate), linear(entering, layer.up)
    active = op.multiply(_opened(shape.gate, gate), up)
    return _join(shape, layer.feed_norms, linear(active, layer.down), rows)


def _attend(
    shape: RotaryShape, layer: RotaryLayer, entering: Any, mask: Any, tables: tuple[Any, Any]
) -> Any:
    from openvino import opset15 as op

    def by_head(asked: Linear, norm: Norm | None, heads: int) -> Any:
        apart = op.reshape(linear(entering, asked), ints(0, 0, heads, shape.head), True)
        return op.transpose(_norm(shape, norm, apart), ints(0, 2, 1, 3))

    query = _turned(by_head(layer.query, layer.query_norm, shape.heads), tables)
    key = _turned(by_head(layer.key, layer.key_norm, shape.key_heads), tables)
    value = by_head(layer.value, None, shape.key_heads)
    if (times := shape.heads // shape.key_heads) > 1:
        key, value = (_repeated(rows, times, shape) for rows in (key, value))
    scores = op.multiply(op.matmul(query, key, False, True), floats(shape.scale))
    shares = op.softmax(op.add(scores, mask), 3)
    context = op.transpose(op.matmul(shares, value, False, False), ints(0, 2, 1, 3))
    return op.reshape(context, ints(0, 0, shape.heads * shape.head), True)


def _turned(rows: Any, tables: tuple[Any, Any]) -> Any:
    from openvino import opset15 as op

    first, second = op.split(rows, axis(3), 2).outputs()
    half = op.concat([op.multiply(second, floats(-1.0)), first], 3)
    return op.add(op.multiply(rows, tables[0]), op.multiply(half, tables[1]))


def _repeated(rows: Any, times: int, shape: RotaryShape) -> Any:
    """Repeat keys or values, ``[n, key heads, tokens, head]``, for all heads that share them."""
    from openvino import opset15 as op

    apart = op.unsqueeze(rows, ints(2))
    many = op.broadcast(apart, ints(1, 1, times, 1, 1), broadcast_spec="BIDIRECTIONAL")
    kept = op.shape_of(rows, "i64")
    texts = op.gather(kept, ints(0), axis(0))
    rest = op.gather(kept, ints(2, 3), axis(0))
    return op.reshape(many, op.concat([texts, ints(shape.heads), rest], 0), False)


def _join(shape: RotaryShape, norms: Norms, computed: Any, rows: Any) -> Any:
    from openvino import opset15 as op

    return _norm(shape, norms.after, op.add(_norm(shape, norms.behind, computed), rows))


def _norm(shape: RotaryShape, norm: Norm | None, rows: Any) -> Any:
    from openvino import opset15 as op

    if norm is None:
        return rows
    if shape.rms:
        squares = op.reduce_mean(op.power(rows, floats(2.0)), ints(-1), True)
        size = op.sqrt(op.add(squares, floats(shape.norm_eps)))
        return op.multiply(op.multiply(rows, op.divide(floats(1.0), size)), constant(norm.scale))
    return layer_norm(rows, norm, shape.norm_eps)


def _opened(gate: GateKind, rows: Any) -> Any:
    from openvino import opset15 as op

    match gate:
        case GateKind.GELU:
            return op.gelu(rows, "erf")
        case GateKind.GELU_TANH:
            return op.gelu(rows, "tanh")
        case GateKind.SILU:
            return op.swish(rows)
