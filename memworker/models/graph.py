"""The fused ONNX graph of a BERT encoder, pooling and normalisation inside it.

::

    input_ids, attention_mask  int64[n, tokens]
      └ word + position embeddings ─ LayerNormalization
          └ layer × N: Q, K, V MatMul ─ MultiHeadAttention ─ MatMul ─ Add, Add, LayerNormalization
                       MatMul ─ BiasGelu ─ MatMul ─ Add, Add, LayerNormalization
              └ mean or CLS pooling ─ L2 ─ embedding  float32[n, dim]

Which operator is the faster one was measured: separate Q, K and V products beat
a packed one, and plain Add beats SkipLayerNormalization on processors. Sessions
must therefore be opened at ORT_ENABLE_BASIC, or ONNX Runtime fuses it back.
"""

from __future__ import annotations

from pathlib import Path

from memworker.models.onnx_file import GraphWriter, tensor_info
from memworker.models.spec import Pooling
from memworker.models.weights import BertLayer, BertShape, BertWeights, Linear, Norm

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-fp32-1"


def build_bert(bert: BertWeights, pooling: Pooling, normalize: bool, path: Path) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-bert")
    mask = graph.op("Cast", "attention_mask", name="mask", to=_INT32)
    hidden = _embeddings(graph, bert)
    for number, layer in enumerate(bert.layers):
        # Only the first token of the last layer is pooled: nobody reads the others' rows.
        first_only = pooling is Pooling.CLS and number == bert.shape.layers - 1
        hidden = _layer(graph, f"layer{number}", layer, bert.shape, hidden, mask, first_only)
    pooled = _first_row(graph, hidden) if pooling is Pooling.CLS else _mean(graph, hidden)
    _finish(graph, pooled, normalize)
    ids: list[str | int] = ["n", "tokens"]
    inputs = [tensor_info(name, "int64", ids) for name in ("input_ids", "attention_mask")]
    graph.save(path, inputs, [tensor_info("embedding", "float", ["n", bert.shape.hidden])])


_INT32, _FLOAT = 6, 1  # TensorProto's element types, known without importing onnx


def _embeddings(graph: GraphWriter, bert: BertWeights) -> str:
    words = graph.op("Gather", graph.weight("words", bert.words), "input_ids", name="word_rows")
    # Every token is of type 0: its row rides on the position table.
    table = graph.weight("positions", bert.positions + bert.token_types[0])
    length = graph.op("Shape", "input_ids", name="length", start=1, end=2)
    rows = graph.op("Slice", table, _ints(graph, 0), length, _ints(graph, 0), name="position_rows")
    total = graph.op("Add", words, rows, name="embedded")
    return _norm(graph, "embedding_norm", bert.norm, bert.shape, total)


def _layer(
    graph: GraphWriter,
    at: str,
    layer: BertLayer,
    shape: BertShape,
    hidden: str,
    mask: str,
    first_only: bool,
) -> str:
    asking = _slice_first(graph, at, hidden) if first_only else hidden
    context = _attention(graph, at, layer, shape, asking, hidden, mask)
    projected = _linear(graph, f"{at}.attention_out", layer.attention_out, context)
    summed = graph.op("Add", projected, asking, name=f"{at}.attention_sum")
    attended = _norm(graph, f"{at}.attention_norm", layer.attention_norm, shape, summed)
    inner = _matmul(graph, f"{at}.feed_in", layer.feed_in, attended)
    bias = graph.weight(f"{at}.feed_in.bias", layer.feed_in.bias)
    active = graph.fused("BiasGelu", inner, bias, name=f"{at}.gelu")
    outer = _linear(graph, f"{at}.feed_out", layer.feed_out, active)
    summed = graph.op("Add", outer, attended, name=f"{at}.feed_sum")
    return _norm(graph, f"{at}.feed_norm", layer.feed_norm, shape, summed)


def _attention(
    graph: GraphWriter,
    at: str,
    layer: BertLayer,
    shape: BertShape,
    asking: str,
    hidden: str,
    mask: str,
) -> str:
    import numpy as np

    query = _matmul(graph, f"{at}.query", layer.query, asking)
    key = _matmul(graph, f"{at}.key", layer.key, hidden)
    value = _matmul(graph, f"{at}.value", layer.value, hidden)
    biases = np.concatenate([layer.query.bias, layer.key.bias, layer.value.bias])
    bias = graph.weight(f"{at}.attention.bias", biases)
    return graph.fused(
        "MultiHeadAttention",
        query,
        key,
        value,
        bias,
        mask,
        name=f"{at}.attention",
        num_heads=shape.heads,
    )


def _matmul(graph: GraphWriter, at: str, linear: Linear, hidden: str) -> str:
    weight = graph.weight(f"{at}.weight", linear.weight)
    return graph.op("MatMul", hidden, weight, name=at)


def _linear(graph: GraphWriter, at: str, linear: Linear, hidden: str) -> str:
    bias = graph.weight(f"{at}.bias", linear.bias)
    return graph.op("Add", _matmul(graph, at, linear, hidden), bias, name=f"{at}.biased")


def _norm(graph: GraphWriter, at: str, norm: Norm, shape: BertShape, hidden: str) -> str:
    scale = graph.weight(f"{at}.scale", norm.scale)
    shift = graph.weight(f"{at}.shift", norm.shift)
    return graph.op(
        "LayerNormalization", hidden, scale, shift, name=at, axis=-1, epsilon=shape.norm_eps
    )


def _slice_first(graph: GraphWriter, at: str, hidden: str) -> str:
    start, end, axis = _ints(graph, 0), _ints(graph, 1), _ints(graph, 1)
    return graph.op("Slice", hidden, start, end, axis, name=f"{at}.first")


def _first_row(graph: GraphWriter, hidden: str) -> str:
    return graph.op("Squeeze", hidden, _ints(graph, 1), name="first_row")


def _mean(graph: GraphWriter, hidden: str) -> str:
    """Average the rows whose mask is 1, as a product with the mask; 0 where none is."""
    mask = graph.op("Cast", "attention_mask", name="mask_float", to=_FLOAT)
    row = graph.op("Unsqueeze", mask, _ints(graph, 1), name="mask_row")
    product = graph.op("MatMul", row, hidden, name="masked_sum_row")
    total = graph.op("Squeeze", product, _ints(graph, 1), name="masked_sum")
    count = graph.op("ReduceSum", mask, _ints(graph, 1), name="token_count", keepdims=1)
    at_least_one = graph.op("Max", count, _float(graph, "one", 1.0), name="divisor")
    return graph.op("Div", total, at_least_one, name="mean")


def _finish(graph: GraphWriter, pooled: str, normalize: bool) -> None:
    if not normalize:
        graph.op("Identity", pooled, name="embedding")
        return
    norm = graph.op("ReduceL2", pooled, name="l2", axes=[1], keepdims=1)
    safe = graph.op("Max", norm, _float(graph, "tiny", 1e-12), name="safe_l2")
    graph.op("Div", pooled, safe, name="embedding")


def _ints(graph: GraphWriter, value: int) -> str:
    import numpy as np

    return graph.weight(f"int{value}", np.array([value], dtype=np.int64))


def _float(graph: GraphWriter, name: str, value: float) -> str:
    import numpy as np

    return graph.weight(name, np.array([value], dtype=np.float32))
