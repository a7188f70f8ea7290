"""A BERT encoder as OpenVINO's own graph, for products in bf16; pooling and L2 inside it.

::

    input_ids int32[n, tokens], attention_mask float32[n, tokens]
      └ word + position embeddings ─ normalisation
          └ layer × N: Q, K, V ─ scores ─ softmax ─ context ─ product + rows ─ normalisation
                       product ─ GELU ─ product + rows ─ normalisation
              └ mean, CLS or last-token pooling ─ L2 ─ embedding  float32[n, dim]

Weights stay float32 in the file: OpenVINO rounds those of products when a worker compiles the
graph, and maps the rest. Attention is written out in plain operators, which OpenVINO fuses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker import interpreters
from memworker.models.family import family_of, read_config
from memworker.models.head import Head
from memworker.models.spec import Activation, Pooling
from memworker.models.tensors import Linear, Norm
from memworker.models.weights import BertLayer, BertShape, BertWeights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from memworker.models.tensors import Matrix

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-bf16-1"
# What is added to the score of a masked token: its share becomes 0, and all masked stay finite.
_MASKED = 1e4


def write(weights: Path, head: Head, path: Path) -> None:
    """Read a model of any family, and save its graph to `path`; weights come to lie beside it."""
    interpreters.without_telemetry()
    import openvino

    config = read_config(weights.parent)
    family = family_of(config)
    model = family.openvino_model(family.read(weights, config), head)
    openvino.save_model(model, path, compress_to_fp16=False)


def build_bert_bf16(bert: BertWeights, head: Head) -> Any:
    """Return the model that gives ``embedding`` float32[n, dim]."""
    return model_of(partial(_token_rows, bert), head, "memworker-bert-bf16")


def model_of(token_rows: Callable[[Any, Any], Any], head: Head, name: str) -> Any:
    """Return the model that pools what `token_rows` makes of ids and mask."""
    import numpy as np
    from openvino import Model, opset15 as op

    ids = op.parameter([-1, -1], np.int32, name="input_ids")
    mask = op.parameter([-1, -1], np.float32, name="attention_mask")
    pooled = _pool(head.pooling, token_rows(ids, mask), mask)
    if head.normalize:
        pooled = op.normalize_l2(pooled, _ints(1), 1e-12, "max")
    model = Model([op.result(pooled, name="embedding")], [ids, mask], name)
    for given, name in zip(model.inputs, ("input_ids", "attention_mask"), strict=True):
        given.get_tensor().set_names({name})
    return model


def _token_rows(bert: BertWeights, ids: Any, mask: Any) -> Any:
    from openvino import opset15 as op

    below = op.multiply(op.subtract(mask, _floats(1.0)), _floats(_MASKED))
    below = op.unsqueeze(below, _ints(1, 2))
    if bert.relative is not None:
        below = op.add(below, _score_bias(bert.relative, ids))
    rows = _norm(_embeddings(bert, ids), bert.norm, bert.shape)
    for layer in bert.layers:
        rows = _layer(layer, bert.shape, rows, below)
    return rows


def _embeddings(bert: BertWeights, ids: Any) -> Any:
    import numpy as np
    from openvino import opset15 as op

    first, length = op.constant(np.int64(0)), _length(ids)
    # Every token is of type 0: its row rides on the position table.
    table = op.constant((bert.positions + bert.token_types[0])[None])
    positions = op.slice(table, _ints(0), length, _ints(1), _ints(1))
    return op.add(op.gather(op.constant(bert.words), ids, first), positions)


def _length(ids: Any) -> Any:
    """Return how many tokens rows have, int64[1]."""
    import numpy as np
    from openvino import opset15 as op

    return op.gather(op.shape_of(ids, "i64"), _ints(1), op.constant(np.int64(0)))


def _score_bias(relative: Matrix, ids: Any) -> Any:
    """Return what all layers add to their scores, float32[heads, tokens, tokens]."""
    import numpy as np
    from openvino import opset15 as op

    nought, one = op.constant(np.int64(0)), op.constant(np.int64(1))
    places = op.range(nought, op.squeeze(_length(ids), _ints(0)), one, "i64")
    behind = op.subtract(op.unsqueeze(places, _ints(0)), op.unsqueeze(places, _ints(1)))
    column = op.add(behind, _ints(relative.shape[1] // 2))
    return op.gather(op.constant(relative), column, one)


def _layer(layer: BertLayer, shape: BertShape, rows: Any, below: Any) -> Any:
    from openvino import opset15 as op

    def by_head(linear: Linear) -> Any:
        heads = _ints(0, 0, shape.heads, shape.hidden // shape.heads)
        return op.transpose(op.reshape(_linear(rows, linear), heads, True), _ints(0, 2, 1, 3))

    query, key, value = (by_head(linear) for linear in (layer.query, layer.key, layer.value))
    root = _floats((shape.hidden // shape.heads) ** -0.5)
    scores = op.multiply(op.matmul(query, key, False, True), root)
    shares = op.softmax(op.add(scores, below), 3)
    context = op.transpose(op.matmul(shares, value, False, False), _ints(0, 2, 1, 3))
    context = op.reshape(context, _ints(0, 0, shape.hidden), True)
    summed = op.add(_linear(context, layer.attention_out), rows)
    attended = _norm(summed, layer.attention_norm, shape)
    active = _activate(shape.activation, _linear(attended, layer.feed_in))
    return _norm(op.add(_linear(active, layer.feed_out), attended), layer.feed_norm, shape)


def _activate(activation: Activation, rows: Any) -> Any:
    from openvino import opset15 as op

    match activation:
        case Activation.GELU:
            return op.gelu(rows, "erf")
        case Activation.GELU_TANH:
            return op.gelu(rows, "tanh")
        case Activation.RELU:
            return op.relu(rows)
    raise AssertionError(f"no family has {activation}")


def _linear(rows: Any, linear: Linear) -> Any:
    import numpy as np
    from openvino import opset15 as op

    weight = op.constant(np.ascontiguousarray(linear.weight.T))
    return op.add(op.matmul(rows, weight, False, True), op.constant(linear.bias))


def _norm(rows: Any, norm: Norm, shape: BertShape) -> Any:
    from openvino import opset15 as op

    even = op.mvn(rows, _ints(-1), True, shape.norm_eps, "INSIDE_SQRT")
    return op.add(op.multiply(even, op.constant(norm.scale)), op.constant(norm.shift))


def _pool(pooling: Pooling, rows: Any, mask: Any) -> Any:
    import numpy as np
    from openvino import opset15 as op

    if pooling is Pooling.CLS:
        return op.gather(rows, op.constant(np.int64(0)), op.constant(np.int64(1)))
    if pooling is Pooling.LAST:
        counted = op.convert(op.reduce_sum(mask, _ints(1), True), "i64")
        place = op.maximum(op.subtract(counted, _ints(1)), _ints(0))
        return op.squeeze(op.gather(rows, place, op.constant(np.int64(1)), 1), _ints(1))
    sums = op.matmul(op.unsqueeze(mask, _ints(1)), rows, False, False)
    count = op.maximum(op.reduce_sum(mask, _ints(1), True), _floats(1.0))
    return op.divide(op.squeeze(sums, _ints(1)), count)


def _ints(*values: int) -> Any:
    import numpy as np

    return _constant(np.array(values, np.int64))


def _floats(value: float) -> Any:
    import numpy as np

    return _constant(np.float32(value))


def _constant(value: ArrayLike) -> Any:
    from openvino import opset15 as op

    return op.constant(value)
