"""The int8 ONNX graph of a BERT encoder: one scale a token, so that neighbours do not matter.

::

    float32[rows, k] ─ Mul 1/smoothing ─┬ Abs ─ ReduceMax ─ row scale ──────────────────┐
                                        └ QuantizeLinear(row scale, zero point 128)     │
                                            └ MatMulIntegerToFloat(s8, column scale) ─ Mul ┴ bias

The rows of all texts lie flat, ``[n * tokens, hidden]``, but for attention.
Q, K and V share one quantisation of their input; what lies between the linear
layers is as in the fp32 graph. As there, sessions are opened at ORT_ENABLE_BASIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memworker.models import parts
from memworker.models.onnx_file import GraphWriter
from memworker.models.quantise import Int8Layer, Int8Linear
from memworker.models.spec import Pooling
from memworker.models.weights import BertLayer, BertWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-int8-token-1"
_ACTIVATION_LIMIT = 127
_ZERO_POINT = 128


def build_bert_int8(
    bert: BertWeights, layers: list[Int8Layer], pooling: Pooling, normalize: bool, path: Path
) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-bert-int8")
    writer = _Writer(graph, bert)
    embedded = parts.embeddings(graph, bert)
    writer.learn_shapes(embedded)
    hidden = writer.flat("tokens_flat", embedded)
    last = bert.shape.layers - 1
    for number, (layer, small) in enumerate(zip(bert.layers, layers, strict=True)):
        # Only the first token of the last layer is pooled: nobody reads the others' rows.
        first_only = pooling is Pooling.CLS and number == last
        hidden = _layer(writer, f"layer{number}", layer, small, hidden, first_only)
    texts = writer.by_text("tokens_by_text", hidden, first_only=pooling is Pooling.CLS)
    parts.finish(graph, parts.pool(graph, pooling, texts), normalize)
    graph.save(path, parts.encoder_inputs(), parts.encoder_outputs(bert.shape.hidden))


def _layer(
    writer: _Writer, at: str, layer: BertLayer, small: Int8Layer, hidden: str, first_only: bool
) -> str:
    graph, shape = writer.graph, writer.bert.shape
    asking = writer.first_rows(at, hidden) if first_only else hidden
    context = _attention(writer, at, layer, small, asking, hidden, first_only)
    projected = writer.linear(f"{at}.attention_out", small.attention_out, context)
    summed = graph.op("Add", projected, asking, name=f"{at}.attention_sum")
    attended = parts.layer_norm(graph, f"{at}.attention_norm", layer.attention_norm, shape, summed)
    entering = writer.times(f"{at}.feed_smooth", attended, small.feed_factor)
    inner = writer.product(f"{at}.feed_in", small.feed_in, writer.quantise(f"{at}.fi", entering))
    bias = graph.weight(f"{at}.feed_in.bias", small.feed_in.bias)
    active = graph.fused("BiasGelu", inner, bias, name=f"{at}.gelu")
    outer = writer.linear(f"{at}.feed_out", small.feed_out, active)
    summed = graph.op("Add", outer, attended, name=f"{at}.feed_sum")
    return parts.layer_norm(graph, f"{at}.feed_norm", layer.feed_norm, shape, summed)


def _attention(
    writer: _Writer,
    at: str,
    layer: BertLayer,
    small: Int8Layer,
    asking: str,
    hidden: str,
    first_only: bool,
) -> str:
    import numpy as np

    smooth = writer.times(f"{at}.attention_smooth", hidden, small.attention_factor)
    tokens = writer.quantise(f"{at}.qkv", smooth)
    askers = tokens
    if first_only:
        smooth = writer.times(f"{at}.query_smooth", asking, small.attention_factor)
        askers = writer.quantise(f"{at}.q", smooth)
    query, key, value = (
        writer.by_text(f"{at}.{name}.rows", writer.product(f"{at}.{name}", part, rows), first)
        for name, part, rows, first in (
            ("query", small.query, askers, first_only),
            ("key", small.key, tokens, False),
            ("value", small.value, tokens, False),
        )
    )
    biases = np.concatenate([small.query.bias, small.key.bias, small.value.bias])
    bias = writer.graph.weight(f"{at}.attention.bias", biases)
    heads = writer.bert.shape.heads
    context = writer.graph.fused(
        "MultiHeadAttention",
        query,
        key,
        value,
        bias,
        "mask",
        name=f"{at}.attention",
        num_heads=heads,
    )
    return writer.flat(f"{at}.context", context)


@dataclass(frozen=True, slots=True)
class _Codes:
    """Rows as u8 codes, and each row's scale, float32[rows, 1]."""

    codes: str
    scale: str


@dataclass(frozen=True, slots=True)
class _Writer:
    """Adds the quantised products, and the changes of shape around attention."""

    graph: GraphWriter
    bert: BertWeights

    def learn_shapes(self, embedded: str) -> None:
        """Add what later nodes need: the mask, [n, tokens, hidden] and the fixed shapes."""
        import numpy as np

        hidden = self.bert.shape.hidden
        self.graph.op("Cast", "attention_mask", name="mask", to=parts.INT32)
        self.graph.op("Shape", embedded, name="by_text")
        self.graph.weight("flat", np.array([-1, hidden], np.int64))
        self.graph.weight("first_by_text", np.array([-1, 1, hidden], np.int64))
        self.graph.weight("one_scale", np.array(1, np.float32))
        self.graph.weight("zero_point", np.array(_ZERO_POINT, np.uint8))
        self.graph.weight("zero_point_row", np.array([_ZERO_POINT], np.uint8))

    def flat(self, at: str, rows: str) -> str:
        return self.graph.op("Reshape", rows, "flat", name=at)

    def by_text(self, at: str, rows: str, first_only: bool) -> str:
        shape = "first_by_text" if first_only else "by_text"
        return self.graph.op("Reshape", rows, shape, name=at)

    def first_rows(self, at: str, rows: str) -> str:
        texts = self.by_text(f"{at}.texts", rows, first_only=False)
        return self.flat(f"{at}.first_rows", parts.slice_first(self.graph, at, texts))

    def times(self, at: str, rows: str, factor: NDArray[np.float32]) -> str:
        return self.graph.op("Mul", rows, self.graph.weight(f"{at}.factor", factor), name=at)

    def quantise(self, at: str, rows: str) -> _Codes:
        """Give each row its own scale, max|x| / 127; a row of zeros gets a tiny one."""
        graph = self.graph
        size = graph.op("Abs", rows, name=f"{at}.abs")
        most = graph.op("ReduceMax", size, name=f"{at}.most", axes=[1], keepdims=1)
        safe = graph.op("Max", most, parts.number(graph, "least", 1e-30), name=f"{at}.safe")
        share = parts.number(graph, "share", 1 / _ACTIVATION_LIMIT)
        scale = graph.op("Mul", safe, share, name=f"{at}.scale")
        scales = graph.op("Reshape", scale, parts.ints(graph, -1), name=f"{at}.scales")
        count = graph.op("Shape", scales, name=f"{at}.count")
        zeros = graph.op("Expand", "zero_point_row", count, name=f"{at}.zeros")
        codes = graph.op("QuantizeLinear", rows, scales, zeros, name=f"{at}.codes", axis=0)
        return _Codes(codes, scale)

    def product(self, at: str, linear: Int8Linear, rows: _Codes) -> str:
        """Multiply codes by weights and give back both scales; the bias is left out."""
        weight = self.graph.weight(f"{at}.weight", linear.weight)
        scale = self.graph.weight(f"{at}.weight_scale", linear.scale)
        product = self.graph.fused(
            "MatMulIntegerToFloat", rows.codes, weight, "one_scale", scale, "zero_point", name=at
        )
        return self.graph.op("Mul", product, rows.scale, name=f"{at}.scaled")

    def linear(self, at: str, linear: Int8Linear, rows: str) -> str:
        product = self.product(at, linear, self.quantise(at + ".in", rows))
        bias = self.graph.weight(f"{at}.bias", linear.bias)
        return self.graph.op("Add", product, bias, name=f"{at}.biased")
