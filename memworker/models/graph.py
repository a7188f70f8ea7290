"""The fused ONNX graph of a BERT encoder in fp32, pooling and normalisation inside it.

::

    input_ids, attention_mask  int64[n, tokens]
      └ word + position embeddings ─ LayerNormalization
          └ layer × N: Q, K, V ─ scores ─ softmax ─ context ─ Gemm (+ rows) ─ LayerNormalization
                       Gemm ─ Gelu ─ Gemm (+ rows) ─ LayerNormalization
              └ mean, CLS or last-token pooling ─ L2 ─ embedding  float32[n, dim]

The residual is what a product adds to. Its bias rides on the rows (`quantise.Entry`), the keys'
own changes no softmax. Sessions must be opened at ORT_ENABLE_BASIC, or ONNX Runtime fuses what
it knows back into operators that are slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memworker.models import parts
from memworker.models.entry import Entry
from memworker.models.head import Head
from memworker.models.onnx_file import GraphWriter
from memworker.models.spec import Pooling
from memworker.models.tensors import Linear, Norm
from memworker.models.weights import BertLayer, BertShape, BertWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Part of the fingerprint: raise it with any change that may move a vector by more than another
# processor would. LAYOUT is part of the file's name alone: raise it with every change.
RECIPE = "bert-fp32-1"
LAYOUT = "token-major-1"


def build_bert(bert: BertWeights, head: Head, path: Path) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-bert")
    parts.add_shapes(graph, bert.shape)
    parts.add_score_bias(graph, bert)
    hidden = parts.embeddings(graph, bert, _entry(bert.layers[0].attention_out).of_norm(bert.norm))
    for number, layer in enumerate(bert.layers):
        last = number == bert.shape.layers - 1
        # Only the first token of the last layer is pooled: the others' rows are not read.
        first_only = last and head.pooling is Pooling.CLS
        norm = layer.feed_norm
        if not last:
            norm = _entry(bert.layers[number + 1].attention_out).of_norm(norm)
        hidden = _layer(graph, f"layer{number}", layer, bert.shape, norm, hidden, first_only)
    parts.finish(graph, parts.pool(graph, head.pooling, hidden), head)
    width = head.width(bert.shape.hidden)
    graph.save(path, parts.encoder_inputs(typed=bert.typed), parts.encoder_outputs(width))


def _entry(added: Linear) -> Entry:
    """Let the bias of a product ride on the rows that the product is added to."""
    import numpy as np

    return Entry(np.ones_like(added.bias), added.bias)


def _layer(
    graph: GraphWriter,
    at: str,
    layer: BertLayer,
    shape: BertShape,
    feed_norm: Norm,
    hidden: str,
    first_only: bool,
) -> str:
    entry, feed = _entry(layer.attention_out), _entry(layer.feed_out)
    asking = parts.first_rows(graph, at, hidden) if first_only else hidden
    query = _gemm(graph, f"{at}.query", entry.of_linear(layer.query), asking)
    key = _product(graph, f"{at}.key", layer.key.weight, hidden)
    value = _gemm(graph, f"{at}.value", entry.of_linear(layer.value), hidden)
    context = parts.attend(graph, at, shape, query, key, value, first_only=first_only)
    context = parts.flatten(graph, at, shape, context)
    summed = _product(graph, f"{at}.attention_out", layer.attention_out.weight, context, asking)
    norm = feed.of_norm(layer.attention_norm)
    attended = parts.layer_norm(graph, f"{at}.attention_norm", norm, shape, summed)
    inner = _gemm(graph, f"{at}.feed_in", feed.of_linear(layer.feed_in), attended)
    active = parts.activate(graph, at, shape.activation, inner)
    summed = _product(graph, f"{at}.feed_out", layer.feed_out.weight, active, attended)
    return parts.layer_norm(graph, f"{at}.feed_norm", feed_norm, shape, summed)


def _gemm(graph: GraphWriter, at: str, linear: Linear, rows: str) -> str:
    return _product(graph, at, linear.weight, rows, graph.weight(f"{at}.bias", linear.bias))


def _product(
    graph: GraphWriter, at: str, weight: NDArray[np.float32], rows: str, added: str | None = None
) -> str:
    """Multiply rows, and add to each a bias, or a row of its own."""
    inputs = (rows, graph.weight(f"{at}.weight", weight), *([added] if added else []))
    return graph.op("Gemm", *inputs, name=at)
