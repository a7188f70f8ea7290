"""Products in 8 bits for `graph_rotary`: codes by fixed scales, or by a scale of each token.

::

    float32[rows, k] ─ QuantizeLinear ─ MatMulIntegerToFloat (s8 codes, column scale)
                                        (─ × each row's scale)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memworker.models import parts
from memworker.models.graph_rotary import Product, Site, lay_as_rows
from memworker.models.onnx_file import GraphWriter
from memworker.models.quantise_rotary import Int8Product, Int8RotaryLayer
from memworker.models.rounding import Grid

if TYPE_CHECKING:
    from memworker.models.tensors import Matrix

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "rotary-int8-1"
_MOST_CODE, _MIDDLE = 127, 128
_LEAST_SCALE = 1e-30


class Small:
    """The products of one layer in 8 bits."""

    def __init__(self, layer: Int8RotaryLayer) -> None:
        self._layer = layer
        self.attention_divisor: Matrix | None = layer.attention_divisor
        self.feed_divisor: Matrix | None = layer.feed_divisor

    def enter(self, graph: GraphWriter, at: str, site: Site, rows: str) -> str:
        grid = getattr(self._layer, "tokens" if site == "askers" else site)
        return _by_token(graph, at, rows) if grid is None else _codes(graph, at, grid, rows)

    def enter_context(self, graph: GraphWriter, at: str, context: str, width: int) -> str:
        grid = self._layer.context
        if grid is None:
            return _by_token(graph, at, lay_as_rows(graph, at, context, width))
        # Laid as rows when they are codes: a quarter of the bytes.
        return lay_as_rows(graph, at, _codes(graph, at, grid, context), width)

    def multiply(
        self, graph: GraphWriter, at: str, product: Product, rows: str, added: str = ""
    ) -> str:
        small: Int8Product = getattr(self._layer, product)
        bias = graph.weight(f"{at}.bias", small.bias) if small.bias.any() else ""
        grid: Grid | None = getattr(self._layer, _SITES[product])
        codes = graph.weight(f"{at}.codes", small.weight.codes)
        steps = graph.weight(f"{at}.steps", small.weight.scale)
        if grid is not None:
            scale, zero = _constants(graph, grid)
            inputs = [rows, codes, scale, steps, zero, *(["", bias] if bias else [])]
            out = graph.fused("MatMulIntegerToFloat", *inputs, name=at)
        else:
            scale, zero = _one_and_middle(graph)
            out = graph.fused(
                "MatMulIntegerToFloat", rows, codes, scale, steps, zero, name=f"{at}.steps_of_row"
            )
            out = graph.op("Mul", out, f"{rows}.scale", name=at)
            if bias:
                out = graph.op("Add", out, bias, name=f"{at}.biased")
        return graph.op("Add", out, added, name=f"{at}.added") if added else out


_SITES = {
    "query": "tokens",
    "key": "tokens",
    "value": "tokens",
    "attention_out": "context",
    "gate": "attended",
    "up": "attended",
    "down": "active",
}


def _codes(graph: GraphWriter, at: str, grid: Grid, rows: str) -> str:
    scale, zero = _constants(graph, grid)
    return graph.op("QuantizeLinear", rows, scale, zero, name=f"{at}.codes")


def _by_token(graph: GraphWriter, at: str, rows: str) -> str:
    """Give each row its own scale, max|x| / 127, called as the codes are and ``.scale``."""
    import numpy as np

    share = parts.number(graph, "code_share", 1 / _MOST_CODE)
    least = parts.number(graph, "least_scale", _LEAST_SCALE)
    size = graph.op("Abs", rows, name=f"{at}.size")
    most = graph.op("ReduceMax", size, name=f"{at}.most", axes=[1], keepdims=1)
    scale = graph.op("Mul", most, share, name=f"{at}.shared")
    scale = graph.op("Max", scale, least, name=f"{at}.codes.scale")
    scales = graph.op("Reshape", scale, parts.ints(graph, -1), name=f"{at}.scales")
    count = graph.op("Shape", scales, name=f"{at}.count")
    middle = graph.weight("middle_row", np.array([_MIDDLE], np.uint8))
    zeros = graph.op("Expand", middle, count, name=f"{at}.zeros")
    return graph.op("QuantizeLinear", rows, scales, zeros, name=f"{at}.codes", axis=0)


def _one_and_middle(graph: GraphWriter) -> tuple[str, str]:
    import numpy as np

    one = graph.weight("one_scale", np.array(1, np.float32))
    return one, graph.weight("middle", np.array(_MIDDLE, np.uint8))


def _constants(graph: GraphWriter, grid: Grid) -> tuple[str, str]:
    import numpy as np

    scale = graph.weight(f"scale{float(grid.scale).hex()}", np.array(grid.scale, np.float32))
    return scale, graph.weight(f"zero{grid.zero}", np.array(grid.zero, np.uint8))
