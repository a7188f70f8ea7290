"""An encoder with rotary positions as OpenVINO's own graph, for products in bf16.

As in `graph_bf16`, weights stay float32 in the file, and everything is written out in plain
operators, which OpenVINO fuses as it knows them: turning, root mean squares, attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "rotary-bf16-1"
# What is added to the score of a masked token: its share becomes 0, and all masked stay finite.
_MASKED = -1e4


def token_rows(weights: RotaryWeights, ids: Any, mask: Any) -> Any:
    """Return the last hidden state, float32[n, tokens, hidden]."""
    import numpy as np
    from openvino import opset15 as op

    shape = weights.shape
    rows = op.gather(op.constant(weights.words), ids, op.constant(np.int64(0)))
    rows = _norm(shape, weights.norm, rows)
    length = op.gather(op.shape_of(ids, "i64"), _constant(np.int64(1)), _constant(np.int64(0)))
    masks = _masks(shape, mask, length)
    tables = {turn: _tables(shape, turn, length) for turn in shape.turns}
    for layer, reach in zip(weights.layers, shape.reach, strict=True):
        rows = _layer(shape, layer, rows, masks[reach.window], tables[reach.turn])
    return _norm(shape, weights.last_norm, rows)


def _masks(shape: RotaryShape, mask: Any, length: Any) -> dict[int, Any]:
    """Return what is added to scores, ``[n, 1, 1 or tokens, tokens]``, by window."""
    import numpy as np
    from openvino import opset15 as op

    below = op.multiply(op.subtract(_floats(1.0), mask), _floats(_MASKED))
    below = op.unsqueeze(below, _ints(1, 2))
    places = op.range(_constant(np.int64(0)), length, _constant(np.int64(1)), "i64")
    behind = op.subtract(op.unsqueeze(places, _ints(1)), op.unsqueeze(places, _ints(0)))
    masks = {}
    for window in {reach.window for reach in shape.reach}:
        hidden = []
        if shape.causal:
            hidden.append(op.less(behind, _ints(0)))
        if window:
            hidden.append(op.greater(op.abs(behind), _ints(window)))
        masks[window] = below
        for unseen in hidden:
            scores = op.select(unseen, _floats(_MASKED), _floats(0.0))
            masks[window] = op.add(masks[window], scores)
    return masks


def _tables(shape: RotaryShape, turn: Turn, length: Any) -> tuple[Any, Any]:
    """Return cosines and sines of the places there are, ``[tokens, head]``."""
    import numpy as np
    from openvino import opset15 as op

    row = op.unsqueeze(length, _ints(0))
    tables = (np.tile(table[: shape.positions], 2) for table in angles(shape, turn))
    cosines, sines = (op.slice(_constant(t), _ints(0), row, _ints(1), _ints(0)) for t in tables)
    return cosines, sines


def _layer(
    shape: RotaryShape, layer: RotaryLayer, rows: Any, mask: Any, tables: tuple[Any, Any]
) -> Any:
    from openvino import opset15 as op

    entering = _norm(shape, layer.attention_norms.before, rows)
    context = _attend(shape, layer, entering, mask, tables)
    rows = _join(shape, layer.attention_norms, _linear(context, layer.attention_out), rows)
    entering = _norm(shape, layer.feed_norms.before, rows)
    gate, up = _linear(entering, layer.gate), _linear(entering, layer.up)
    active = op.multiply(_opened(shape.gate, gate), up)
    return _join(shape, layer.feed_norms, _linear(active, layer.down), rows)


def _attend(
    shape: RotaryShape, layer: RotaryLayer, entering: Any, mask: Any, tables: tuple[Any, Any]
) -> Any:
    from openvino import opset15 as op

    def by_head(linear: Linear, norm: Norm | None, heads: int) -> Any:
        apart = op.reshape(_linear(entering, linear), _ints(0, 0, heads, shape.head), True)
        return op.transpose(_norm(shape, norm, apart), _ints(0, 2, 1, 3))

    query = _turned(by_head(layer.query, layer.query_norm, shape.heads), tables)
    key = _turned(by_head(layer.key, layer.key_norm, shape.key_heads), tables)
    value = by_head(layer.value, None, shape.key_heads)
    if (times := shape.heads // shape.key_heads) > 1:
        key, value = (_repeated(rows, times, shape) for rows in (key, value))
    scores = op.multiply(op.matmul(query, key, False, True), _floats(shape.scale))
    shares = op.softmax(op.add(scores, mask), 3)
    context = op.transpose(op.matmul(shares, value, False, False), _ints(0, 2, 1, 3))
    return op.reshape(context, _ints(0, 0, shape.heads * shape.head), True)


def _turned(rows: Any, tables: tuple[Any, Any]) -> Any:
    from openvino import opset15 as op

    first, second = op.split(rows, _axis(3), 2).outputs()
    half = op.concat([op.multiply(second, _floats(-1.0)), first], 3)
    return op.add(op.multiply(rows, tables[0]), op.multiply(half, tables[1]))


def _repeated(rows: Any, times: int, shape: RotaryShape) -> Any:
    """Repeat keys or values, ``[n, key heads, tokens, head]``, for all heads that share them."""
    from openvino import opset15 as op

    apart = op.unsqueeze(rows, _ints(2))
    many = op.broadcast(apart, _ints(1, 1, times, 1, 1), broadcast_spec="BIDIRECTIONAL")
    kept = op.shape_of(rows, "i64")
    texts = op.gather(kept, _ints(0), _axis(0))
    rest = op.gather(kept, _ints(2, 3), _axis(0))
    return op.reshape(many, op.concat([texts, _ints(shape.heads), rest], 0), False)


def _join(shape: RotaryShape, norms: Norms, computed: Any, rows: Any) -> Any:
    from openvino import opset15 as op

    return _norm(shape, norms.after, op.add(_norm(shape, norms.behind, computed), rows))


def _norm(shape: RotaryShape, norm: Norm | None, rows: Any) -> Any:
    from openvino import opset15 as op

    if norm is None:
        return rows
    if shape.rms:
        squares = op.reduce_mean(op.power(rows, _floats(2.0)), _ints(-1), True)
        size = op.sqrt(op.add(squares, _floats(shape.norm_eps)))
        return op.multiply(op.multiply(rows, op.divide(_floats(1.0), size)), _constant(norm.scale))
    even = op.mvn(rows, _ints(-1), True, shape.norm_eps, "INSIDE_SQRT")
    scaled = op.multiply(even, _constant(norm.scale))
    return op.add(scaled, _constant(norm.shift)) if norm.shift.any() else scaled


def _linear(rows: Any, linear: Linear) -> Any:
    import numpy as np
    from openvino import opset15 as op

    product = op.matmul(rows, _constant(np.ascontiguousarray(linear.weight.T)), False, True)
    return op.add(product, _constant(linear.bias)) if linear.bias.any() else product


def _opened(gate: GateKind, rows: Any) -> Any:
    from openvino import opset15 as op

    match gate:
        case GateKind.GELU:
            return op.gelu(rows, "erf")
        case GateKind.GELU_TANH:
            return op.gelu(rows, "tanh")
        case GateKind.SILU:
            return op.swish(rows)


def _axis(value: int) -> Any:
    import numpy as np

    return _constant(np.int64(value))


def _ints(*values: int) -> Any:
    import numpy as np

    return _constant(np.array(values, np.int64))


def _floats(value: float) -> Any:
    import numpy as np

    return _constant(np.float32(value))


def _constant(value: ArrayLike) -> Any:
    from openvino import opset15 as op

    return op.constant(value)
