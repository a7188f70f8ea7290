"""The parts that fp32 and int8 graphs share: embeddings, norms, pooling, the last division."""

from __future__ import annotations

from typing import Any

from memworker.models.onnx_file import GraphWriter, tensor_info
from memworker.models.spec import Pooling
from memworker.models.weights import BertShape, BertWeights, Norm

INT32, FLOAT = 6, 1  # TensorProto's element types, known without importing onnx


def embeddings(graph: GraphWriter, bert: BertWeights) -> str:
    """Add the normalised sum of word, position and type rows, float32[n, tokens, hidden]."""
    words = graph.op("Gather", graph.weight("words", bert.words), "input_ids", name="word_rows")
    # Every token is of type 0: its row rides on the position table.
    table = graph.weight("positions", bert.positions + bert.token_types[0])
    length = graph.op("Shape", "input_ids", name="length", start=1, end=2)
    rows = graph.op("Slice", table, ints(graph, 0), length, ints(graph, 0), name="position_rows")
    total = graph.op("Add", words, rows, name="embedded")
    return layer_norm(graph, "embedding_norm", bert.norm, bert.shape, total)


def layer_norm(graph: GraphWriter, at: str, norm: Norm, shape: BertShape, hidden: str) -> str:
    """Add a layer normalisation over the last axis."""
    scale = graph.weight(f"{at}.scale", norm.scale)
    shift = graph.weight(f"{at}.shift", norm.shift)
    return graph.op(
        "LayerNormalization", hidden, scale, shift, name=at, axis=-1, epsilon=shape.norm_eps
    )


def slice_first(graph: GraphWriter, at: str, hidden: str) -> str:
    """Keep the first token of each text: ``[n, tokens, hidden]`` to ``[n, 1, hidden]``."""
    start, end, axis = ints(graph, 0), ints(graph, 1), ints(graph, 1)
    return graph.op("Slice", hidden, start, end, axis, name=f"{at}.first")


def pool(graph: GraphWriter, pooling: Pooling, hidden: str) -> str:
    """Turn token rows into text rows; the last layer of a CLS model gives one row a text."""
    if pooling is Pooling.CLS:
        return graph.op("Squeeze", hidden, ints(graph, 1), name="first_row")
    return _mean(graph, hidden)


def _mean(graph: GraphWriter, hidden: str) -> str:
    """Average the rows whose mask is 1, as a product with the mask; 0 where none is."""
    mask = graph.op("Cast", "attention_mask", name="mask_float", to=FLOAT)
    row = graph.op("Unsqueeze", mask, ints(graph, 1), name="mask_row")
    product = graph.op("MatMul", row, hidden, name="masked_sum_row")
    total = graph.op("Squeeze", product, ints(graph, 1), name="masked_sum")
    count = graph.op("ReduceSum", mask, ints(graph, 1), name="token_count", keepdims=1)
    at_least_one = graph.op("Max", count, number(graph, "one", 1.0), name="divisor")
    return graph.op("Div", total, at_least_one, name="mean")


def finish(graph: GraphWriter, pooled: str, normalize: bool) -> None:
    """Add the graph's output ``embedding``, divided by its L2 norm if asked."""
    if not normalize:
        graph.op("Identity", pooled, name="embedding")
        return
    norm = graph.op("ReduceL2", pooled, name="l2", axes=[1], keepdims=1)
    safe = graph.op("Max", norm, number(graph, "tiny", 1e-12), name="safe_l2")
    graph.op("Div", pooled, safe, name="embedding")


def encoder_inputs() -> list[Any]:
    """Describe ``input_ids`` and ``attention_mask``, int64[n, tokens]."""
    ids: list[str | int] = ["n", "tokens"]
    return [tensor_info(name, "int64", ids) for name in ("input_ids", "attention_mask")]


def encoder_outputs(dim: int) -> list[Any]:
    """Describe ``embedding``, float32[n, dim]."""
    return [tensor_info("embedding", "float", ["n", dim])]


def ints(graph: GraphWriter, value: int) -> str:
    """Add, or find, the constant int64[1] of that value."""
    import numpy as np

    return graph.weight(f"int{value}".replace("-", "_"), np.array([value], dtype=np.int64))


def number(graph: GraphWriter, name: str, value: float) -> str:
    """Add, or find, the constant float32[1] of that name."""
    import numpy as np

    return graph.weight(name, np.array([value], dtype=np.float32))
