"""The int8 ONNX graph of a BERT encoder: one scale a token, so that neighbours do not matter.

::

    float32[rows, k] ─┬ Abs ─ ReduceMax ─ row scale ───────────────────────────┐
                      └ QuantizeLinear(row scale, zero point)                  │
                          └ MatMulIntegerToFloat(s8 codes, column scale) ─── Mul

The rows of all texts lie flat, ``[n * tokens, hidden]``, but for attention. Q, K
and V share one quantisation of their input. Each normalisation emits its rows as
the next product wants them (`quantise.Entry`); times the divisor they are the
residual, and bring the next bias along. As in fp32, sessions are opened at
ORT_ENABLE_BASIC, or ONNX Runtime fuses the slower SkipLayerNormalization back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from memworker.models import parts
from memworker.models.onnx_file import GraphWriter
from memworker.models.quantise import Entry, Int8Layer, Int8Weight
from memworker.models.spec import Pooling
from memworker.models.weights import BertShape, BertWeights, Norm

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "bert-int8-token-2"
_MIDDLE = 128
# GELU's outputs lie above -0.17: a low zero point leaves nearly all codes to the positive ones.
_GELU_ZERO, _GELU_LEAST = 24, 0.17
_TOP = 255


def build_bert_int8(
    bert: BertWeights, layers: list[Int8Layer], pooling: Pooling, normalize: bool, path: Path
) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-bert-int8")
    writer = _Writer(graph, bert.shape)
    embedded = parts.embeddings(graph, replace(bert, norm=layers[0].attention.of_norm(bert.norm)))
    writer.add_shapes(embedded)
    hidden = writer.flat("tokens_flat", embedded)
    for number, (layer, small) in enumerate(zip(bert.layers, layers, strict=True)):
        last = number == len(layers) - 1
        # Only the first token of the last layer is pooled: nobody reads the others' rows.
        first_only = last and pooling is Pooling.CLS
        feed_norm = (
            layer.feed_norm if last else layers[number + 1].attention.of_norm(layer.feed_norm)
        )
        norms = (small.feed.of_norm(layer.attention_norm), feed_norm)
        hidden = _layer(writer, f"layer{number}", small, norms, hidden, first_only)
    texts = writer.by_text("tokens_by_text", hidden, first_only=pooling is Pooling.CLS)
    parts.finish(graph, parts.pool(graph, pooling, texts), normalize)
    graph.save(path, parts.encoder_inputs(), parts.encoder_outputs(bert.shape.hidden))


def _layer(
    writer: _Writer,
    at: str,
    small: Int8Layer,
    norms: tuple[Norm, Norm],
    hidden: str,
    first_only: bool,
) -> str:
    graph, shape = writer.graph, writer.shape
    asking = writer.first_rows(at, hidden) if first_only else hidden
    context = writer.quantise(f"{at}.c", _attention(writer, at, small, asking, hidden, first_only))
    projected = writer.product(f"{at}.attention_out", small.attention_out, context)
    residual = writer.residual(f"{at}.attention_residual", small.attention, asking)
    summed = graph.op("Add", projected, residual, name=f"{at}.attention_sum")
    attended = parts.layer_norm(graph, f"{at}.attention_norm", norms[0], shape, summed)
    entering = writer.quantise(f"{at}.f", attended)
    inner = writer.product(f"{at}.feed_in", small.feed_in, entering)
    bias = graph.weight(f"{at}.feed_in.bias", small.feed_bias)
    active = graph.fused("BiasGelu", inner, bias, name=f"{at}.gelu")
    outer = writer.product(f"{at}.feed_out", small.feed_out, writer.quantise_gelu(at, active))
    residual = writer.residual(f"{at}.feed_residual", small.feed, attended)
    summed = graph.op("Add", outer, residual, name=f"{at}.feed_sum")
    return parts.layer_norm(graph, f"{at}.feed_norm", norms[1], shape, summed)


def _attention(
    writer: _Writer, at: str, small: Int8Layer, asking: str, hidden: str, first_only: bool
) -> str:
    tokens = writer.quantise(f"{at}.t", hidden)
    askers = writer.quantise(f"{at}.a", asking) if first_only else tokens
    query = writer.product(f"{at}.query", small.query, askers)
    key = writer.product(f"{at}.key", small.key, tokens)
    value = writer.product(f"{at}.value", small.value, tokens)
    context = writer.graph.fused(
        "MultiHeadAttention",
        writer.by_text(f"{at}.query.rows", query, first_only),
        writer.by_text(f"{at}.key.rows", key, first_only=False),
        writer.by_text(f"{at}.value.rows", value, first_only=False),
        writer.graph.weight(f"{at}.attention.bias", small.attention_bias),
        "mask",
        name=f"{at}.attention",
        num_heads=writer.shape.heads,
    )
    return writer.flat(f"{at}.context", context)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows as u8 codes, each row's scale, float32[rows, 1], and the code of zero."""

    codes: str
    scale: str
    zero: str


@dataclass(frozen=True, slots=True)
class _Writer:
    """Adds the quantised products, and the changes of shape around attention."""

    graph: GraphWriter
    shape: BertShape

    def add_shapes(self, embedded: str) -> None:
        """Add what later nodes name: the mask, and the shapes flat and by text."""
        import numpy as np

        hidden = self.shape.hidden
        self.graph.op("Cast", "attention_mask", name="mask", to=parts.INT32)
        self.graph.op("Shape", embedded, name="by_text")
        self.graph.weight("flat", np.array([-1, hidden], np.int64))
        self.graph.weight("one_scale", np.array(1, np.float32))

    def flat(self, at: str, rows: str) -> str:
        return self.graph.op("Reshape", rows, "flat", name=at)

    def by_text(self, at: str, rows: str, first_only: bool) -> str:
        import numpy as np

        shape = "by_text"
        if first_only:
            one_row = np.array([-1, 1, self.shape.hidden], np.int64)
            shape = self.graph.weight("first_by_text", one_row)
        return self.graph.op("Reshape", rows, shape, name=at)

    def first_rows(self, at: str, rows: str) -> str:
        texts = self.by_text(f"{at}.texts", rows, first_only=False)
        return self.flat(f"{at}.first_rows", parts.slice_first(self.graph, at, texts))

    def residual(self, at: str, entry: Entry, rows: str) -> str:
        """Give back the plain rows, with the bias that `entry` let ride on them."""
        divisor = self.graph.weight(f"{at}.divisor", entry.divisor)
        return self.graph.op("Mul", rows, divisor, name=at)

    def quantise(self, at: str, rows: str) -> _Rows:
        """Give each row its own scale, max|x| / 127; a row of zeros gets a tiny one."""
        size = self.graph.op("Abs", rows, name=f"{at}.abs")
        return self._codes(at, rows, size, _MIDDLE, least=1e-30)

    def quantise_gelu(self, at: str, rows: str) -> _Rows:
        """Give each row the scale that fits its largest output, or else GELU's lowest."""
        return self._codes(f"{at}.g", rows, rows, _GELU_ZERO, least=_GELU_LEAST / _GELU_ZERO)

    def _codes(self, at: str, rows: str, size: str, zero: int, least: float) -> _Rows:
        import numpy as np

        graph, kind = self.graph, f"zero{zero}"
        share = parts.number(graph, f"{kind}.share", 1 / (_TOP - zero))
        floor = parts.number(graph, f"{kind}.least", least)
        most = graph.op("ReduceMax", size, name=f"{at}.most", axes=[1], keepdims=1)
        scale = graph.op("Mul", most, share, name=f"{at}.shared")
        scale = graph.op("Max", scale, floor, name=f"{at}.scale")
        scales = graph.op("Reshape", scale, parts.ints(graph, -1), name=f"{at}.scales")
        count = graph.op("Shape", scales, name=f"{at}.count")
        row = graph.weight(f"{kind}.row", np.array([zero], np.uint8))
        zeros = graph.op("Expand", row, count, name=f"{at}.zeros")
        codes = graph.op("QuantizeLinear", rows, scales, zeros, name=f"{at}.codes", axis=0)
        return _Rows(codes, scale, graph.weight(kind, np.array(zero, np.uint8)))

    def product(self, at: str, weight: Int8Weight, rows: _Rows) -> str:
        """Multiply codes by codes in integers and give back both scales."""
        codes = self.graph.weight(f"{at}.codes", weight.codes)
        scale = self.graph.weight(f"{at}.weight_scale", weight.scale)
        product = self.graph.fused(
            "MatMulIntegerToFloat", rows.codes, codes, "one_scale", scale, rows.zero, name=at
        )
        return self.graph.op("Mul", product, rows.scale, name=f"{at}.scaled")
