"""The fused ONNX graph of a BERT encoder in fp32, pooling and normalisation inside it.

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

from memworker.models import parts
from memworker.models.onnx_file import GraphWriter
from memworker.models.spec import Pooling
from memworker.models.weights import BertLayer, BertShape, BertWeights, Linear

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-fp32-1"


def build_bert(bert: BertWeights, pooling: Pooling, normalize: bool, path: Path) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-bert")
    mask = graph.op("Cast", "attention_mask", name="mask", to=parts.INT32)
    hidden = parts.embeddings(graph, bert)
    for number, layer in enumerate(bert.layers):
        # Only the first token of the last layer is pooled: nobody reads the others' rows.
        first_only = pooling is Pooling.CLS and number == bert.shape.layers - 1
        hidden = _layer(graph, f"layer{number}", layer, bert.shape, hidden, mask, first_only)
    parts.finish(graph, parts.pool(graph, pooling, hidden), normalize)
    graph.save(path, parts.encoder_inputs(), parts.encoder_outputs(bert.shape.hidden))


def _layer(
    graph: GraphWriter,
    at: str,
    layer: BertLayer,
    shape: BertShape,
    hidden: str,
    mask: str,
    first_only: bool,
) -> str:
    asking = parts.slice_first(graph, at, hidden) if first_only else hidden
    context = _attention(graph, at, layer, shape, asking, hidden, mask)
    projected = _linear(graph, f"{at}.attention_out", layer.attention_out, context)
    summed = graph.op("Add", projected, asking, name=f"{at}.attention_sum")
    attended = parts.layer_norm(graph, f"{at}.attention_norm", layer.attention_norm, shape, summed)
    inner = _matmul(graph, f"{at}.feed_in", layer.feed_in, attended)
    bias = graph.weight(f"{at}.feed_in.bias", layer.feed_in.bias)
    active = graph.fused("BiasGelu", inner, bias, name=f"{at}.gelu")
    outer = _linear(graph, f"{at}.feed_out", layer.feed_out, active)
    summed = graph.op("Add", outer, attended, name=f"{at}.feed_sum")
    return parts.layer_norm(graph, f"{at}.feed_norm", layer.feed_norm, shape, summed)


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
