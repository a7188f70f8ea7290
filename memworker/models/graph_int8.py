"""The int8 ONNX graph of a BERT encoder: all scales fixed, so that neighbours do not matter.

::

    float32[rows, k] ─ QuantizeLinear (one scale) ─ MatMulIntegerToFloat (s8 codes, column scale)

Q, K and V share one quantisation of their input; what attention gives is quantised before it
is laid as rows again, a quarter of the bytes. Each normalisation emits its rows as the next
product wants them (`entry.Entry`); times the divisor they are the residual, and bring the next
bias along. The largest channels behind GELU stay apart: a few columns in fp32. As in fp32,
sessions are opened at ORT_ENABLE_BASIC.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from memworker.models import parts
from memworker.models.entry import Entry
from memworker.models.head import Head
from memworker.models.onnx_file import GraphWriter
from memworker.models.quantise import Int8Layer
from memworker.models.rounding import Grid, Int8Weight
from memworker.models.spec import Pooling
from memworker.models.tensors import Norm
from memworker.models.weights import BertShape, BertWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-int8-static-1"


def build_bert_int8(bert: BertWeights, layers: Iterable[Int8Layer], head: Head, path: Path) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-bert-int8")
    shape, small = bert.shape, list(layers)
    parts.add_shapes(graph, shape)
    parts.add_score_bias(graph, bert)
    hidden = parts.embeddings(graph, bert, small[0].attention.of_norm(bert.norm))
    for number, layer in enumerate(bert.layers):
        last = number == shape.layers - 1
        # Only the first token of the last layer is pooled: the others' rows are not read.
        first_only = last and head.pooling is Pooling.CLS
        feed_norm = layer.feed_norm
        if not last:
            feed_norm = small[number + 1].attention.of_norm(feed_norm)
        norms = (small[number].feed.of_norm(layer.attention_norm), feed_norm)
        hidden = _layer(graph, f"layer{number}", small[number], shape, norms, hidden, first_only)
    parts.finish(graph, parts.pool(graph, head.pooling, hidden), head)
    width = head.width(shape.hidden)
    graph.save(path, parts.encoder_inputs(typed=bert.typed), parts.encoder_outputs(width))


def _layer(
    graph: GraphWriter,
    at: str,
    small: Int8Layer,
    shape: BertShape,
    norms: tuple[Norm, Norm],
    hidden: str,
    first_only: bool,
) -> str:
    asking = parts.first_rows(graph, at, hidden) if first_only else hidden
    context = _attention(graph, at, small, shape, asking, hidden)
    projected = _product(graph, f"{at}.attention_out", small.attention_out, small.context, context)
    residual = _residual(graph, f"{at}.attention_residual", small.attention, asking)
    summed = graph.op("Add", projected, residual, name=f"{at}.attention_sum")
    attended = parts.layer_norm(graph, f"{at}.attention_norm", norms[0], shape, summed)
    outer = _feed_forward(graph, at, small, shape, attended)
    residual = _residual(graph, f"{at}.feed_residual", small.feed, attended)
    summed = graph.op("Add", outer, residual, name=f"{at}.feed_sum")
    return parts.layer_norm(graph, f"{at}.feed_norm", norms[1], shape, summed)


def _attention(
    graph: GraphWriter, at: str, small: Int8Layer, shape: BertShape, asking: str, hidden: str
) -> str:
    """Add attention; its context comes as codes, laid as rows."""
    tokens = _codes(graph, f"{at}.tokens", small.tokens, hidden)
    askers = tokens if asking == hidden else _codes(graph, f"{at}.askers", small.tokens, asking)
    query = _product(graph, f"{at}.query", small.query, small.tokens, askers, small.query_bias)
    # The keys' bias adds the same to all scores of a query: no share changes.
    key = _product(graph, f"{at}.key", small.key, small.tokens, tokens)
    value = _product(graph, f"{at}.value", small.value, small.tokens, tokens, small.value_bias)
    first_only = asking != hidden
    context = parts.attend(graph, at, shape, query, key, value, first_only=first_only)
    codes = _codes(graph, f"{at}.context_codes", small.context, context)
    return parts.flatten(graph, at, shape, codes)


def _feed_forward(
    graph: GraphWriter, at: str, small: Int8Layer, shape: BertShape, attended: str
) -> str:
    entering = _codes(graph, f"{at}.attended", small.attended, attended)
    inner = _product(
        graph, f"{at}.feed_in", small.feed_in, small.attended, entering, small.feed_bias
    )
    active = parts.activate(graph, at, shape.activation, inner)
    codes = _codes(graph, f"{at}.active", small.active, active)
    outer = _product(graph, f"{at}.feed_out", small.feed_out, small.active, codes)
    if not len(small.apart):
        return outer
    width = len(small.feed_bias)
    begin = parts.ints(graph, width - len(small.apart))
    few = graph.op(
        "Slice", active, begin, parts.ints(graph, width), parts.ints(graph, 1), name=f"{at}.few"
    )
    apart = graph.weight(f"{at}.apart", small.apart)
    return graph.op("Gemm", few, apart, outer, name=f"{at}.feed_out_all")


def _residual(graph: GraphWriter, at: str, entry: Entry, rows: str) -> str:
    """Give back the plain rows, with the bias that `entry` let ride on them."""
    return graph.op("Mul", rows, graph.weight(f"{at}.divisor", entry.divisor), name=at)


def _codes(graph: GraphWriter, at: str, grid: Grid, rows: str) -> str:
    scale, zero = _constants(graph, grid)
    return graph.op("QuantizeLinear", rows, scale, zero, name=f"{at}.codes")


def _product(
    graph: GraphWriter,
    at: str,
    weight: Int8Weight,
    grid: Grid,
    codes: str,
    bias: NDArray[np.float32] | None = None,
) -> str:
    """Multiply codes by codes in integers, and give back both scales and the bias."""
    scale, zero = _constants(graph, grid)
    weights = graph.weight(f"{at}.codes", weight.codes)
    steps = graph.weight(f"{at}.steps", weight.scale)
    inputs = [codes, weights, scale, steps, zero]
    if bias is not None:
        inputs += ["", graph.weight(f"{at}.bias", bias)]
    return graph.fused("MatMulIntegerToFloat", *inputs, name=at)


def _constants(graph: GraphWriter, grid: Grid) -> tuple[str, str]:
    import numpy as np

    scale = graph.weight(f"scale{float(grid.scale).hex()}", np.array(grid.scale, np.float32))
    return scale, graph.weight(f"zero{grid.zero}", np.array(grid.zero, np.uint8))
