"""The fused ONNX graph of an encoder with rotary positions; how products are done is given.

::

    input_ids, attention_mask  int64[n, tokens]
      └ word embeddings (─ norm)
          └ layer × N: (norm ─) Q, K, V (─ norm) ─ turned ─ scores ─ softmax ─ context ─ product
                       (─ norm) + rows (─ norm)
                       (norm ─) gate × up ─ product (─ norm) + rows (─ norm)
              └ (norm ─) mean, CLS or last-token pooling ─ L2 ─ embedding  float32[n, dim]

Rows lie as in `parts`. A causal model needs no mask of the padding, which stands behind all that
a token may see. A window costs nothing where no text is longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from memworker.models import parts
from memworker.models.head import Head
from memworker.models.onnx_file import GraphWriter
from memworker.models.rotary import GateKind, Norms, Reach, RotaryLayer, RotaryWeights
from memworker.models.rotary_attention import Attention
from memworker.models.rotary_frame import Frame
from memworker.models.spec import Pooling
from memworker.models.tensors import Linear, Norm

if TYPE_CHECKING:
    from memworker.models.tensors import Matrix

# Part of the fingerprint: raise it with any change that may move a vector by more than another
# processor would. LAYOUT is part of the file's name alone: raise it with every change.
RECIPE = "rotary-fp32-1"
LAYOUT = "rotary-1"

Product = Literal["query", "key", "value", "attention_out", "gate", "up", "down"]
Site = Literal["tokens", "askers", "attended", "active"]


class Products(Protocol):
    """How one layer multiplies.

    What enters a block is divided by its divisor, by the normalisation before; None is 1.
    """

    attention_divisor: Matrix | None
    feed_divisor: Matrix | None

    def enter(self, graph: GraphWriter, at: str, site: Site, rows: str) -> str:
        """Make rows ready to be multiplied."""
        ...

    def enter_context(self, graph: GraphWriter, at: str, context: str, width: int) -> str:
        """Lay what attention gives, ``[n, heads, tokens, head]``, as rows that are ready."""
        ...

    def multiply(
        self, graph: GraphWriter, at: str, product: Product, rows: str, added: str = ""
    ) -> str:
        """Multiply rows that are ready; add the product's bias, and rows of the caller's."""
        ...


class Exact:
    """Products in fp32: what is added rides on the product."""

    attention_divisor: Matrix | None = None
    feed_divisor: Matrix | None = None

    def __init__(self, layer: RotaryLayer) -> None:
        self._layer = layer

    def enter(self, graph: GraphWriter, at: str, site: Site, rows: str) -> str:
        return rows

    def enter_context(self, graph: GraphWriter, at: str, context: str, width: int) -> str:
        return lay_as_rows(graph, at, context, width)

    def multiply(
        self, graph: GraphWriter, at: str, product: Product, rows: str, added: str = ""
    ) -> str:
        linear: Linear = getattr(self._layer, product)
        inputs = [rows, graph.weight(f"{at}.weight", linear.weight)]
        bias = graph.weight(f"{at}.bias", linear.bias) if linear.bias.any() else ""
        if added and bias:
            inputs.append(graph.op("Add", added, bias, name=f"{at}.added"))
        elif added or bias:
            inputs.append(added or bias)
        return graph.op("Gemm", *inputs, name=at)


def build_rotary(
    weights: RotaryWeights,
    products: Sequence[Products],
    head: Head,
    path: Path,
) -> None:
    """Write the graph that gives ``embedding`` float32[n, dim], and its weights, to `path`."""
    graph = GraphWriter("memworker-rotary")
    writer = _Layers(graph, weights, products, head.pooling)
    rows = writer.embeddings()
    for number in range(weights.shape.layers):
        rows = writer.layer(number, rows)
    if not writer.pooled_alone:
        rows = writer.choose("pooled", rows)
    if weights.last_norm is not None:
        rows = writer.norm("last_norm", weights.last_norm, rows)
    mean = head.pooling is Pooling.MEAN
    parts.finish(graph, parts.pool(graph, head.pooling, rows) if mean else rows, head)
    width = head.width(weights.shape.hidden)
    graph.save(path, parts.encoder_inputs(), parts.encoder_outputs(width))


def lay_as_rows(graph: GraphWriter, at: str, context: str, width: int) -> str:
    """Lay what attention gives as rows again, a copy; its kind of number is kept."""
    by_token = graph.op("Transpose", context, name=f"{at}.by_token", perm=[2, 0, 1, 3])
    return graph.op("Reshape", by_token, parts.ints(graph, -1, width), name=f"{at}.flat")


class _Layers:
    """Writes layer after layer."""

    def __init__(
        self,
        graph: GraphWriter,
        weights: RotaryWeights,
        products: Sequence[Products],
        pooling: Pooling,
    ) -> None:
        self._graph, self._weights, self._products = graph, weights, products
        self._shape, self._pooling = weights.shape, pooling
        last = self._shape.reach[-1]
        # One token a text is pooled: of the last layer no other rows are read.
        self.pooled_alone = not last.window and (
            pooling is Pooling.LAST or (pooling is Pooling.CLS and not self._shape.causal)
        )
        Frame(graph, weights.shape, pooling).add()

    def embeddings(self) -> str:
        """Add the rows of words, float32[tokens * n, hidden]."""
        graph, words = self._graph, self._graph.weight("words", self._weights.words)
        rows = graph.op("Gather", words, "ids_flat", name="word_rows")
        if self._weights.norm is None:
            return rows
        return self.norm("embedding_norm", self._weights.norm, rows, self._carried(0))

    def layer(self, number: int, rows: str) -> str:
        """Add one layer over rows that are divided as `_carried` says."""
        graph, at = self._graph, f"layer{number}"
        layer, products = self._weights.layers[number], self._products[number]
        alone = self.pooled_alone and number == self._shape.layers - 1
        norms, divisor = layer.attention_norms, products.attention_divisor
        entering = self._enter(f"{at}.attention", norms, divisor, rows)
        tokens = askers = products.enter(graph, f"{at}.tokens", "tokens", entering)
        if alone:
            rows = self.choose(f"{at}.rows", rows)
            asking = self.choose(f"{at}.asking", entering) if norms.before is not None else rows
            askers = products.enter(graph, f"{at}.askers", "askers", asking)
        context = self._attend(at, number, askers, tokens, alone)
        context = products.enter_context(
            graph, f"{at}.context", context, self._shape.heads * self._shape.head
        )
        carried = None if layer.feed_norms.before is not None else products.feed_divisor
        rows = self._join(f"{at}.attention_out", number, context, rows, carried)
        entering = self._enter(f"{at}.feed", layer.feed_norms, products.feed_divisor, rows)
        entering = products.enter(graph, f"{at}.attended", "attended", entering)
        active = self._gated(at, products, entering)
        active = products.enter(graph, f"{at}.active", "active", active)
        return self._join(f"{at}.down", number, active, rows, self._carried(number + 1))

    def choose(self, at: str, rows: str) -> str:
        """Keep the rows that are pooled; all of them for a mean."""
        if self._pooling is Pooling.CLS:
            return parts.first_rows(self._graph, at, rows)
        if self._pooling is Pooling.LAST:
            return parts.last_rows(self._graph, at, rows)
        return rows

    def norm(self, at: str, norm: Norm, rows: str, divisor: Matrix | None = None) -> str:
        """Add a normalisation over the last axis, its result divided."""
        graph, shape = self._graph, self._shape
        scale, shift = norm.scale, norm.shift
        if divisor is not None:
            scale, shift = scale / divisor, shift / divisor
        inputs = [rows, graph.weight(f"{at}.scale", scale)]
        if shape.rms:
            assert not shift.any(), "a root mean square has no shift"
            kind = "SimplifiedLayerNormalization"
        else:
            kind = "LayerNormalization"
            inputs += [graph.weight(f"{at}.shift", shift)] if shift.any() else []
        return graph.op(kind, *inputs, name=at, axis=-1, epsilon=shape.norm_eps)

    def _carried(self, number: int) -> Matrix | None:
        """Return what the rows between layers are divided by, for the layer of that number."""
        if number == self._shape.layers:
            return None
        if self._weights.layers[number].attention_norms.before is not None:
            return None
        return self._products[number].attention_divisor

    def _enter(self, at: str, norms: Norms, divisor: Matrix | None, rows: str) -> str:
        if norms.before is None:
            return rows
        return self.norm(f"{at}_before", norms.before, rows, divisor)

    def _join(self, at: str, number: int, ready: str, rows: str, carried: Matrix | None) -> str:
        """Multiply what a block computed, and add it to the rows that entered it."""
        graph, products, layer = self._graph, self._products[number], self._weights.layers[number]
        attention = at.endswith("attention_out")
        norms = layer.attention_norms if attention else layer.feed_norms
        divisor = products.attention_divisor if attention else products.feed_divisor
        product: Product = "attention_out" if attention else "down"
        if norms.before is None and divisor is not None:
            rows = graph.op("Mul", rows, graph.weight(f"{at}.divisor", divisor), name=f"{at}.plain")
        if norms.behind is None:
            rows = products.multiply(graph, at, product, ready, rows)
        else:
            out = products.multiply(graph, at, product, ready)
            out = self.norm(f"{at}_behind", norms.behind, out)
            rows = graph.op("Add", out, rows, name=f"{at}.sum")
        if norms.after is None:
            return rows
        return self.norm(f"{at}_after", norms.after, rows, carried)

    def _gated(self, at: str, products: Products, entering: str) -> str:
        graph = self._graph
        gate = products.multiply(graph, f"{at}.gate", "gate", entering)
        up = products.multiply(graph, f"{at}.up", "up", entering)
        match self._shape.gate:
            case GateKind.GELU:
                open_ = graph.fused("Gelu", gate, name=f"{at}.open")
            case GateKind.GELU_TANH:
                open_ = graph.fused("FastGelu", gate, name=f"{at}.open")
            case GateKind.SILU:
                open_ = graph.fused("QuickGelu", gate, name=f"{at}.open", alpha=1.0)
        return graph.op("Mul", open_, up, name=f"{at}.gated")

    def _attend(self, at: str, number: int, askers: str, tokens: str, alone: bool) -> str:
        """Add softmax(QK' scale)V a text and head, float32[n, heads, tokens, head]."""
        graph, shape = self._graph, self._shape
        layer, products = self._weights.layers[number], self._products[number]
        reach = shape.reach[number]
        query = products.multiply(graph, f"{at}.query", "query", askers)
        key = products.multiply(graph, f"{at}.key", "key", tokens)
        value = products.multiply(graph, f"{at}.value", "value", tokens)
        places = "places_pooled" if alone else "places"
        query = self._turned(query, layer.query_norm, reach, places, keys=False)
        key = self._for_all_heads(self._turned(key, layer.key_norm, reach, "places", keys=True))
        value = graph.op("Reshape", value, "by_key_head", name=f"{value}.by_head")
        value = self._for_all_heads(value)
        attention = Attention(at, shape, reach.window, (query, key, value), alone)
        if alone:
            return attention.at_once(graph)
        return graph.either(
            "short", attention.at_once, attention.in_blocks, name=f"{at}.attended_to"
        )

    def _turned(
        self, rows: str, norm: Norm | None, reach: Reach, places: str, *, keys: bool
    ) -> str:
        """Normalise each head's numbers, if the model does, and turn them by their places."""
        graph, kind = self._graph, "key" if keys else "query"
        if norm is not None:
            rows = graph.op("Reshape", rows, f"by_{kind}_head", name=f"{rows}.split")
            rows = self.norm(f"{rows}.norm", norm, rows)
        rows = graph.op("Reshape", rows, f"by_{kind}_row", name=f"{rows}.by_row")
        at = self._shape.turns.index(reach.turn)
        heads = self._shape.key_heads if keys else self._shape.heads
        inputs = (rows, places, f"cosines{at}", f"sines{at}")
        rows = graph.fused("RotaryEmbedding", *inputs, name=f"{rows}.turned", num_heads=heads)
        return graph.op("Reshape", rows, f"by_{kind}_head", name=f"{rows}.by_head")

    def _for_all_heads(self, rows: str) -> str:
        """Repeat keys or values, ``[tokens, n, key heads, head]``, for all that share them."""
        graph, times = self._graph, self._shape.heads // self._shape.key_heads
        if times == 1:
            return rows
        apart = graph.op("Unsqueeze", rows, parts.ints(graph, 3), name=f"{rows}.apart")
        repeats = parts.ints(graph, 1, 1, 1, times, 1)
        many = graph.op("Expand", apart, repeats, name=f"{rows}.many")
        return graph.op("Reshape", many, "by_query_head", name=f"{rows}.for_all")
