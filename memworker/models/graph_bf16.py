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

from functools import partial
from typing import TYPE_CHECKING, Any

from memworker.models.head import Head
from memworker.models.parts_bf16 import (
    axis,
    floats,
    ints,
    layer_norm,
    linear,
    masked_scores,
    model_of,
)
from memworker.models.spec import Activation
from memworker.models.tensors import Linear
from memworker.models.weights import BertLayer, BertShape, BertWeights

if TYPE_CHECKING:
    from memworker.models.tensors import Matrix

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-bf16-1"


def build_bert_bf16(bert: BertWeights, head: Head) -> Any:
    """Return the model that gives ``embedding`` float32[n, dim]."""
    return model_of(partial(_token_rows, bert), head, "memworker-bert-bf16")


def _token_rows(bert: BertWeights, ids: Any, mask: Any) -> Any:
    from openvino import opset15 as op

    below = masked_scores(mask)
    if bert.relative is not None:
        below = op.add(below, _score_bias(bert.relative, ids))
    rows = layer_norm(_embeddings(bert, ids), bert.norm, bert.shape.norm_eps)
    for layer in bert.layers:
        rows = _layer(layer, bert.shape, rows, below)
    return rows


def _embeddings(bert: BertWeights, ids: Any) -> Any:
    from openvino import opset15 as op

    first, length = axis(0), _length(ids)
    # Every token is of type 0: its row rides on the position table.
    table = op.constant((bert.positions + bert.token_types[0])[None])
    positions = op.slice(table, ints(0), length, ints(1), ints(1))
    return op.add(op.gather(op.constant(bert.words), ids, first), positions)


def _length(ids: Any) -> Any:
    """Return how many tokens rows have, int64[1]."""
    from openvino import opset15 as op

    return op.gather(op.shape_of(ids, "i64"), ints(1), axis(0))


def _score_bias(relative: Matrix, ids: Any) -> Any:
    """Return what all layers add to their scores, float32[heads, tokens, tokens]."""
    from openvino import opset15 as op

    nought, one = axis(0), axis(1)
    places = op.range(nought, op.squeeze(_length(ids), ints(0)), one, "i64")
    behind = op.subtract(op.unsqueeze(places, ints(0)), op.unsqueeze(places, ints(1)))
    column = op.add(behind, ints(relative.shape[1] // 2))
    return op.gather(op.constant(relative), column, one)


def _layer(layer: BertLayer, shape: BertShape, rows: Any, below: Any) -> Any:
    from openvino import opset15 as op

    def by_head(asked: Linear) -> Any:
        heads = ints(0, 0, shape.heads, shape.hidden // shape.heads)
        return op.transpose(op.reshape(linear(rows, asked), heads, True), ints(0, 2, 1, 3))

    query, key, value = (by_head(each) for each in (layer.query, layer.key, layer.value))
    root = floats((shape.hidden // shape.heads) ** -0.5)
    scores = op.multiply(op.matmul(query, key, False, True), root)
    shares = op.softmax(op.add(scores, below), 3)
    context = op.transpose(op.matmul(shares, value, False, False), ints(0, 2, 1, 3))
    context = op.reshape(context, ints(0, 0, shape.hidden), True)
    summed = op.add(linear(context, layer.attention_out), rows)
    attended = layer_norm(summed, layer.attention_norm, shape.norm_eps)
    active = _activate(shape.activation, linear(attended, layer.feed_in))
    summed = op.add(linear(active, layer.feed_out), attended)
    return layer_norm(summed, layer.feed_norm, shape.norm_eps)


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
