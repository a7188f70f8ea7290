"""The parts that fp32 and int8 graphs share: rows, attention, norms, pooling, the last division.

Rows lie token by token, the first tokens of all texts and then the second ones, flat:
``[tokens * n, hidden]``. So attention can take queries, keys and values as they lie, a product
a text and head over strided rows, without the copies that operators for whole attention make.
"""

from __future__ import annotations

from typing import Any

from memworker.models.head import Head, Layer
from memworker.models.onnx_file import GraphWriter, tensor_info
from memworker.models.rotary_attention import AT_ONCE, Attention, add_blocks
from memworker.models.spec import Activation, Pooling
from memworker.models.tensors import Norm
from memworker.models.weights import BertShape, BertWeights

FLOAT, INT64, BOOL = 1, 7, 9  # TensorProto's element types, known without importing onnx
# What is added to the score of a masked token: its share becomes 0, and all masked stay finite.
_MASKED = 1e4


def embeddings(graph: GraphWriter, bert: BertWeights, norm: Norm) -> str:
    """Add the normalised sums of word, position and type rows, float32[tokens * n, hidden]."""
    ids = graph.op("Transpose", "input_ids", name="ids", perm=[1, 0])
    words = graph.op("Gather", graph.weight("words", bert.words), ids, name="word_rows")
    # Where every token is of type 0, its row rides on the position table.
    rides = 0 if bert.typed else bert.token_types[0]
    table = graph.weight("positions", (bert.positions + rides)[:, None, :])
    many = graph.op("Shape", ids, name="tokens", start=0, end=1)
    rows = graph.op("Slice", table, ints(graph, 0), many, ints(graph, 0), name="position_rows")
    total = graph.op("Add", words, rows, name="embedded")
    if bert.typed:
        kinds = graph.op("Transpose", "token_type_ids", name="types", perm=[1, 0])
        typed = graph.op(
            "Gather", graph.weight("token_types", bert.token_types), kinds, name="typed"
        )
        total = graph.op("Add", total, typed, name="embedded_typed")
    flat = graph.op("Reshape", total, ints(graph, -1, bert.shape.hidden), name="embedded_flat")
    return layer_norm(graph, "embedding_norm", norm, bert.shape, flat)


def add_shapes(graph: GraphWriter, shape: BertShape) -> None:
    """Add what later nodes name: the mask in its three uses, and the shapes of rows."""
    texts = graph.op("Shape", "input_ids", name="texts", start=0, end=1)
    heads = ints(graph, shape.heads, shape.hidden // shape.heads)
    graph.op("Concat", ints(graph, -1), texts, heads, name="by_head", axis=0)
    graph.op("Concat", ints(graph, -1), texts, ints(graph, shape.hidden), name="by_text", axis=0)
    mask = graph.op("Cast", "attention_mask", name="mask", to=FLOAT)
    one, most = number(graph, "one", 1.0), number(graph, "masked", _MASKED)
    below = graph.op("Mul", graph.op("Sub", mask, one, name="mask_below"), most, name="mask_least")
    graph.op("Unsqueeze", below, ints(graph, 1, 2), name="mask_scores")
    least = graph.op("ReduceMin", mask, name="mask_least_of_all", keepdims=0)
    graph.op("Cast", least, name="unpadded", to=BOOL)
    if shape.positions > AT_ONCE:
        length = graph.op("Shape", "input_ids", name="length_row", start=1, end=2)
        graph.op("Squeeze", length, name="length")
        whole(graph, 0, "zero")
        whole(graph, 1, "one_place")
        graph.op("Identity", "by_head", name="by_query_head")
        add_blocks(graph)


def first_rows(graph: GraphWriter, at: str, rows: str) -> str:
    """Keep the first token of each text: they are the first rows."""
    return graph.op("Slice", rows, ints(graph, 0), "texts", ints(graph, 0), name=f"{at}.first")


def add_score_bias(graph: GraphWriter, bert: BertWeights) -> None:
    """Add what all layers add to their scores, the mask in it, where the model is relative.

    ``score_bias`` is float32[heads, tokens, tokens] where no text is padded, and one for each
    text where one is; ``score_bias_first`` is that of the first tokens alone.
    """
    if bert.relative is None:
        return
    nought, one = ints(graph, 0), ints(graph, 1)
    length = graph.op("Shape", "input_ids", name="bias_length", start=1, end=2)
    last = graph.op("Squeeze", length, nought, name="bias_length_alone")
    places = graph.op("Range", whole(graph, 0), last, whole(graph, 1), name="places")
    keys, queries = (
        graph.op("Unsqueeze", places, axis, name=f"places{axis}") for axis in (nought, one)
    )
    behind = graph.op("Sub", keys, queries, name="behind")
    own = ints(graph, bert.relative.shape[1] // 2)
    column = graph.op("Add", behind, own, name="bias_column")
    table = graph.weight("relative", bert.relative)
    alone = graph.op("Gather", table, column, name="relative_bias", axis=1)

    def masked(inner: GraphWriter) -> str:
        return inner.op("Add", alone, "mask_scores", name="relative_bias_masked")

    def unmasked(inner: GraphWriter) -> str:
        return inner.op("Identity", alone, name="relative_bias_alone")

    both = graph.either("unpadded", unmasked, masked, name="score_bias")
    graph.op("Slice", both, nought, one, ints(graph, -2), name="score_bias_first")


def attend(
    graph: GraphWriter,
    at: str,
    shape: BertShape,
    query: str,
    key: str,
    value: str,
    *,
    first_only: bool = False,
) -> str:
    """Add softmax(QK'/sqrt(d))V a text and head, float32[n, heads, tokens, hidden / heads].

    Where `first_only`, there are queries of the first tokens alone.
    """
    asked, keys, values = (
        graph.op("Reshape", rows, "by_head", name=f"{rows}.by_head") for rows in (query, key, value)
    )
    if shape.positions > AT_ONCE and not shape.relative:
        rows = Attention(at, shape, 0, (asked, keys, values), first_only)
        if first_only:
            return rows.at_once(graph)
        return graph.either("short", rows.at_once, rows.in_blocks, name=f"{at}.context")
    scores = graph.fused(
        "FusedMatMul",
        asked,
        keys,
        name=f"{at}.scores",
        transBatchA=1,
        transBatchB=1,
        transB=1,
        alpha=shape.scale,
    )

    def softmax(inner: GraphWriter) -> str:
        return inner.op("Softmax", scores, name=f"{at}.shares_all", axis=-1)

    def masked_softmax(inner: GraphWriter) -> str:
        masked = inner.op("Add", scores, "mask_scores", name=f"{at}.scores_masked")
        return inner.op("Softmax", masked, name=f"{at}.shares_masked", axis=-1)

    if shape.relative:
        bias = "score_bias_first" if first_only else "score_bias"
        biased = graph.op("Add", scores, bias, name=f"{at}.scores_biased")
        shares = graph.op("Softmax", biased, name=f"{at}.shares", axis=-1)
    else:
        shares = graph.either("unpadded", softmax, masked_softmax, name=f"{at}.shares")
    return graph.fused("FusedMatMul", shares, values, name=f"{at}.context", transBatchB=1)


def flatten(graph: GraphWriter, at: str, shape: BertShape, context: str) -> str:
    """Lay what attention gives as rows again, a copy; its kind of number is kept."""
    by_token = graph.op("Transpose", context, name=f"{at}.by_token", perm=[2, 0, 1, 3])
    return graph.op("Reshape", by_token, ints(graph, -1, shape.hidden), name=f"{at}.flat")


def layer_norm(graph: GraphWriter, at: str, norm: Norm, shape: BertShape, hidden: str) -> str:
    """Add a layer normalisation over the last axis."""
    scale = graph.weight(f"{at}.scale", norm.scale)
    shift = graph.weight(f"{at}.shift", norm.shift)
    return graph.op(
        "LayerNormalization", hidden, scale, shift, name=at, axis=-1, epsilon=shape.norm_eps
    )


def pool(graph: GraphWriter, pooling: Pooling, hidden: str) -> str:
    """Turn token rows into text rows; the last layer of a CLS model gives one row a text."""
    if pooling is Pooling.CLS:
        return hidden
    if pooling is Pooling.LAST:
        last_index(graph)
        return last_rows(graph, "pooled", hidden)
    texts = graph.op("Reshape", hidden, "by_text", name="tokens_by_text")
    row = mask_row(graph)
    return mean(graph, graph.fused("FusedMatMul", row, texts, name="masked_sum", transBatchB=1))


def last_rows(graph: GraphWriter, at: str, rows: str) -> str:
    """Keep the rows of `last_index`."""
    return graph.op("Gather", rows, "last_at", name=f"{at}.last")


def last_index(graph: GraphWriter) -> None:
    """Add where the last token of each text lies that is not masked, the first where all are."""
    count = graph.op("ReduceSum", "attention_mask", ints(graph, 1), name="last_count", keepdims=0)
    place = graph.op("Sub", count, ints(graph, 1), name="last_place_or_none")
    place = graph.op("Max", place, ints(graph, 0), name="last_place")
    begin = graph.op("Mul", place, "texts", name="last_begin")
    zero, one, texts = (
        graph.op("Squeeze", value, name=f"{name}.scalar")
        for name, value in (
            ("last_zero", ints(graph, 0)),
            ("last_one", ints(graph, 1)),
            ("last_texts", "texts"),
        )
    )
    which = graph.op("Range", zero, texts, one, name="text_numbers")
    graph.op("Add", begin, which, name="last_at")


def mask_row(graph: GraphWriter, given: str = "attention_mask") -> str:
    """Add the mask as a row a text, float32[n, 1, tokens]: times token rows, it adds them up."""
    mask = graph.op("Cast", given, name="mask_to_pool", to=FLOAT)
    return graph.op("Unsqueeze", mask, ints(graph, 1), name="mask_row")


def mean(graph: GraphWriter, sums: str) -> str:
    """Divide sums ``[n, 1, dim]`` by how many tokens are not masked; 0 where none is not."""
    total = graph.op("Squeeze", sums, ints(graph, 1), name="masked_sum_row")
    count = graph.op("ReduceSum", "mask_to_pool", ints(graph, 1), name="token_count", keepdims=1)
    at_least_one = graph.op("Max", count, number(graph, "one", 1.0), name="divisor")
    return graph.op("Div", total, at_least_one, name="mean")


def finish(graph: GraphWriter, pooled: str, head: Head) -> None:
    """Add the layers behind pooling and the output ``embedding``, divided by its norm if asked."""
    for place, layer in enumerate(head.layers):
        pooled = dense(graph, f"dense{place}", layer, pooled)
    if not head.normalize:
        graph.op("Identity", pooled, name="embedding")
        return
    norm = graph.op("ReduceL2", pooled, name="l2", axes=[1], keepdims=1)
    safe = graph.op("Max", norm, number(graph, "tiny", 1e-12), name="safe_l2")
    graph.op("Div", pooled, safe, name="embedding")


def dense(graph: GraphWriter, at: str, layer: Layer, rows: str) -> str:
    """Add a dense layer in fp32, whatever precision the encoder has."""
    weight = graph.weight(f"{at}.weight", layer.weight)
    bias = graph.weight(f"{at}.bias", layer.bias)
    summed = graph.op("Gemm", rows, weight, bias, name=at)
    return activate(graph, at, layer.activation, summed)


def activate(graph: GraphWriter, at: str, kind: Activation, rows: str) -> str:
    """Add what follows a product."""
    match kind:
        case Activation.IDENTITY:
            return rows
        case Activation.GELU:
            return graph.fused("Gelu", rows, name=f"{at}.active")
        case Activation.GELU_TANH:
            return graph.fused("FastGelu", rows, name=f"{at}.active")
        case Activation.SILU:
            opened = graph.op("Sigmoid", rows, name=f"{at}.opened")
            return graph.op("Mul", rows, opened, name=f"{at}.active")
    kinds = {Activation.TANH: "Tanh", Activation.RELU: "Relu", Activation.SIGMOID: "Sigmoid"}
    return graph.op(kinds[kind], rows, name=f"{at}.active")


def encoder_inputs(*, typed: bool = False) -> list[Any]:
    """Describe ``input_ids``, ``attention_mask`` and if `typed` the types, int64[n, tokens]."""
    ids: list[str | int] = ["n", "tokens"]
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if typed else []))
    return [tensor_info(name, "int64", ids) for name in names]


def encoder_outputs(dim: int) -> list[Any]:
    """Describe ``embedding``, float32[n, dim]."""
    return [tensor_info("embedding", "float", ["n", dim])]


def ints(graph: GraphWriter, *values: int) -> str:
    """Add, or find, the constant int64[n] of those values."""
    import numpy as np

    name = "_".join(f"{value}" for value in values).replace("-", "minus")
    return graph.weight(f"int{name}", np.array(values, dtype=np.int64))


def whole(graph: GraphWriter, value: int, name: str = "") -> str:
    """Add, or find, the constant int64[] of that value."""
    import numpy as np

    return graph.weight(name or f"whole{value}", np.array(value, dtype=np.int64))


def number(graph: GraphWriter, name: str, value: float) -> str:
    """Add, or find, the constant float32[1] of that name."""
    import numpy as np

    return graph.weight(name, np.array([value], dtype=np.float32))
