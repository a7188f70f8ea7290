"""Somebody else's ONNX graph with its products in 8 bits: one scale a row, deaf to neighbours.

::

    rows [.., k] ─ flat [rows, k] (─ Mul 1/divisor) ─┬ LeakyRelu ─ ReduceMax ─ row scale ┐
                                                      └ QuantizeLinear(row scale, zero)    │
                                                          └ MatMulIntegerToFloat(s8) ─ Mul ┘

ONNX Runtime's optimiser first makes the file's graph simple, without what it fuses slowly. Then
each product of rows by a constant matrix is written anew; products of the same rows share their
codes. Nothing is known of what lies between, so no range is fixed: each row has its own scale.
Weights are rounded (GPTQ), large channels divided and the code of 0 chosen by what the shipped
texts give: behind GELU nearly all codes are for what is above 0.
Attention that is fused already is taken apart into its product and `MultiHeadAttention`.

This module runs in a process of its own, for it loads ONNX Runtime.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.models.coding import TOP, Coding, choose_coding
from memworker.models.foreign_check import refuse_unlike
from memworker.models.onnx_file import WEIGHTS_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "foreign-int8-row-1"
# What ONNX Runtime fuses into something slower than its parts, or that could not be taken apart.
_LEFT_APART = ["SkipLayerNormFusion", "AttentionFusion", "EmbedLayerNormFusion"]
# Rows of the calibration texts that are looked at.
_ROWS = 1536
_INLINE_BELOW_BYTES = 4096
_MS = "com.microsoft"


@dataclass(frozen=True, slots=True)
class _Product:
    """Rows by a constant matrix [k, width]; `node` stands for both in the graph."""

    node: Any
    rows: str
    weight: Floats


def main() -> None:
    """Do what the job on standard input says; see `models.foreign_build`."""
    job = json.load(sys.stdin)
    write_int8(Path(job["source"]), job["ids"], Path(job["target"]))


def write_int8(source: Path, ids: list[list[int]], target: Path) -> None:
    """Write the graph of `source` in 8 bits to `target`, its weights beside it.

    Raises ValueError where it has no product that could be computed so, or gives other vectors.
    """
    import onnx

    simple = target.parent / "simple" / "model.onnx"
    simple.parent.mkdir()
    _simplify(source, simple)
    model = onnx.load(str(simple))
    products = list(_products(model.graph))
    if not products:
        raise ValueError("it has no product of rows by a constant float32 matrix")
    seen = _seen(simple, {product.rows for product in products}, ids)
    # Rows that are one a text are few, and near the end: they stay as they are.
    products = [product for product in products if product.rows in seen]
    if not products:
        raise ValueError("it has no product of token rows by a constant float32 matrix")
    _Rewriting(model, seen).run(products)
    for name in (path.name for path in simple.parent.iterdir()):
        (simple.parent / name).unlink()
    simple.parent.rmdir()
    onnx.save_model(
        model,
        str(target),
        save_as_external_data=True,
        location=WEIGHTS_FILE,
        size_threshold=_INLINE_BELOW_BYTES,
    )
    refuse_unlike(str(source), ids, str(target), "onnxruntime")


def _simplify(source: Path, simple: Path) -> None:
    """Have constants folded and what is written in many operators fused; nothing else."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(simple)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", "simple.bin")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_INLINE_BELOW_BYTES))
    onnxruntime.InferenceSession(
        str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=_LEFT_APART
    )


def _products(graph: Any) -> Iterator[_Product]:
    from onnx import TensorProto, numpy_helper

    constants = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    }
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in constants or node.input[0] in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        if (matrix := _matrix(node, weight)) is not None:
            yield _Product(node, node.input[0], matrix)


def _matrix(node: Any, weight: Floats) -> Floats | None:
    """Return what rows are multiplied by in a node; None where it is no plain product."""
    import numpy as np

    given = _attributes(node)
    if node.op_type == "MatMul":
        return weight
    if node.op_type == "Gemm":
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
        if not plain or given.get("transA", 0):
            return None
        return np.ascontiguousarray(weight.T) if given.get("transB", 0) else weight
    if node.op_type == "FusedMatMul" and not set(given) - {"alpha", "transB"}:
        weight = np.ascontiguousarray(weight.T) if given.get("transB", 0) else weight
        return weight * np.float32(given.get("alpha", 1.0))
    if node.op_type == "Attention" and node.domain == _MS:
        apart = set(given) <= {"num_heads", "mask_filter_value", "scale", "unidirectional"}
        past = any(node.input[4:]) or len(node.output) > 1 or given.get("unidirectional", 0)
        return weight if apart and not past and weight.shape[1] == 3 * weight.shape[0] else None
    return None


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _seen(simple: Path, names: set[str], ids: list[list[int]]) -> dict[str, Floats]:
    """Run texts one by one; return what rows of tokens a product is given, float32[rows, k]."""
    import numpy as np
    import onnx
    import onnxruntime

    light = onnx.load(str(simple), load_external_data=False)
    known = {output.name for output in light.graph.output}
    for name in sorted(names - known):
        light.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    looking = simple.with_name("looking.onnx")
    onnx.save_model(light, str(looking))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        str(looking), options, providers=["CPUExecutionProvider"]
    )
    inputs = {given.name for given in session.get_inputs()}
    wanted = sorted(names)
    stride = max(sum(map(len, ids)) // _ROWS, 1)
    found: dict[str, list[Floats]] = {name: [] for name in wanted}
    begin = 0
    for tokens in ids:
        row = np.array([tokens], np.int64)
        feeds = {"input_ids": row, "attention_mask": np.ones_like(row)}
        feeds["token_type_ids"] = np.zeros_like(row)
        given = {name: value for name, value in feeds.items() if name in inputs}
        for name, value in zip(wanted, session.run(wanted, given), strict=True):
            flat = value.reshape(-1, value.shape[-1])
            if len(flat) < len(tokens):
                found.pop(name, None)
            elif name in found:
                found[name].append(np.array(flat[begin::stride]))
        begin = (begin - len(tokens)) % stride
    return {name: np.concatenate(rows) for name, rows in found.items()}


@dataclass(slots=True)
class _Rewriting:
    """Puts nodes for quantised products into a graph in place of its own."""

    model: Any
    seen: dict[str, Floats]
    _nodes: list[Any] = field(default_factory=list)
    _codes: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def run(self, products: list[_Product]) -> None:
        graph = self.model.graph
        of_rows: dict[str, list[_Product]] = {}
        for product in products:
            of_rows.setdefault(product.rows, []).append(product)
        codings = {
            rows: choose_coding(self.seen[rows], [each.weight for each in those])
            for rows, those in of_rows.items()
        }
        by_output = {product.node.output[0]: product for product in products}
        self._constant("int8.one", 1.0, "float32")
        self._constant("int8.least", 1e-30, "float32")
        self._constant("int8.flat", [-1], "int64")
        self._constant("int8.begin", [0], "int64")
        self._constant("int8.last", [1], "int64")
        for node in list(graph.node):
            found = by_output.get(node.output[0]) if node.output else None
            if found is not None:
                self._product(found, codings[found.rows])
            elif node.op_type == "SkipLayerNormalization" and not any(node.output[1:]):
                self._normalisation(node)
            else:
                self._nodes.append(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        used = {name for node in graph.node for name in node.input}
        used |= {output.name for output in graph.output} | _inner_names(graph.node)
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        if not any(each.domain == _MS for each in self.model.opset_import):
            from onnx import helper

            self.model.opset_import.append(helper.make_opsetid(_MS, 1))

    def _product(self, product: _Product, coding: Coding) -> None:
        from memworker.models.rounding import quantise

        node, at = product.node, product.node.output[0]
        weight = coding.weight(product.weight)
        rounded = quantise(weight, coding.rows(self.seen[product.rows]))
        codes, scale, shape = self._quantised(product.rows, coding)
        self._constant(f"{at}.codes", rounded.codes, "int8")
        self._constant(f"{at}.scale", rounded.scale, "float32")
        given = [codes, f"{at}.codes", "int8.one", f"{at}.scale", f"{product.rows}.int8.zero"]
        raw = self._op("MatMulIntegerToFloat", *given, name=f"{at}.int8", domain=_MS)
        if node.op_type == "Gemm":
            bias = node.input[2] if len(node.input) > 2 else ""
            self._op("Mul", raw, scale, name=f"{at}.scaled" if bias else at)
            if bias:
                self._op("Add", f"{at}.scaled", bias, name=at)
            return
        scaled = self._op("Mul", raw, scale, name=f"{at}.scaled")
        width = self._constant(f"{at}.width", [weight.shape[1]], "int64")
        whole = self._op("Concat", shape, width, name=f"{at}.shape", axis=0)
        if node.op_type != "Attention":
            self._op("Reshape", scaled, whole, name=at)
            return
        self._attention(node, self._op("Reshape", scaled, whole, name=f"{at}.all"))

    def _normalisation(self, node: Any) -> None:
        """Write it in its parts, which are quicker."""
        rows, more, scale, shift, bias = [*node.input, "", ""][:5]
        at = node.output[0]
        summed = self._op("Add", rows, more, name=f"{at}.sum")
        if bias:
            summed = self._op("Add", summed, bias, name=f"{at}.biased")
        given = [summed, scale, *([shift] if shift else [])]
        epsilon = _attributes(node).get("epsilon", 1e-12)
        self._op("LayerNormalization", *given, name=at, axis=-1, epsilon=epsilon)

    def _attention(self, node: Any, together: str) -> None:
        from onnx import helper

        at, given = node.output[0], _attributes(node)
        parts = [f"{at}.{name}" for name in ("query", "key", "value")]
        hidden = self._width(node.input[1])
        sizes = self._constant(f"{at}.sizes", [hidden] * 3, "int64")
        self._nodes.append(helper.make_node("Split", [together, sizes], parts, axis=2))
        if self._opset() < 13:
            del self._nodes[-1].input[1:]
            self._nodes[-1].attribute.append(helper.make_attribute("split", [hidden] * 3))
        bias = node.input[2] if len(node.input) > 2 else ""
        mask = node.input[3] if len(node.input) > 3 else ""
        kept = {name: value for name, value in given.items() if name != "unidirectional"}
        self._op("MultiHeadAttention", *parts, bias, mask, name=at, domain=_MS, **kept)

    def _quantised(self, rows: str, coding: Coding) -> tuple[str, str, str]:
        """Give each row its own scale; return the codes, the scales, the shape around."""
        if rows in self._codes:
            return self._codes[rows]
        at = f"{rows}.int8"
        whole = self._op("Shape", rows, name=f"{at}.whole")
        around = self._around(at, whole)
        above = TOP - coding.zero
        self._constant(f"{at}.rows", [-1, self.seen[rows].shape[1]], "int64")
        self._constant(f"{at}.zero", coding.zero, "uint8")
        self._constant(f"{at}.zero_row", [coding.zero], "uint8")
        self._constant(f"{at}.share", 1 / above, "float32")
        flat = self._op("Reshape", rows, f"{at}.rows", name=f"{at}.flat")
        if coding.divisor is not None:
            self._constant(f"{at}.factor", 1 / coding.divisor, "float32")
            flat = self._op("Mul", flat, f"{at}.factor", name=f"{at}.even")
        # What is below 0 counts by how few codes there are for it.
        size = self._op("LeakyRelu", flat, name=f"{at}.size", alpha=-above / coding.zero)
        most = self._reduce_max(size, f"{at}.most")
        safe = self._op("Max", most, "int8.least", name=f"{at}.safe")
        scale = self._op("Mul", safe, f"{at}.share", name=f"{at}.scale")
        scales = self._op("Reshape", scale, "int8.flat", name=f"{at}.scales")
        count = self._op("Shape", scales, name=f"{at}.count")
        zeros = self._op("Expand", f"{at}.zero_row", count, name=f"{at}.zeros")
        codes = self._op(
            "QuantizeLinear", flat, scales, zeros, name=f"{at}.codes", domain=_MS, axis=0
        )
        self._codes[rows] = codes, scale, around
        return self._codes[rows]

    def _around(self, at: str, whole: str) -> str:
        """Return the shape of rows without its last number."""
        rank = self._op("Shape", whole, name=f"{at}.rank")
        end = self._op("Sub", rank, "int8.last", name=f"{at}.end")
        return self._op("Slice", whole, "int8.begin", end, name=f"{at}.around")

    def _reduce_max(self, rows: str, name: str) -> str:
        if self._opset() < 18:
            return self._op("ReduceMax", rows, name=name, axes=[1], keepdims=1)
        return self._op("ReduceMax", rows, "int8.last", name=name, keepdims=1)

    def _opset(self) -> int:
        return next(int(each.version) for each in self.model.opset_import if each.domain == "")

    def _width(self, weight: str) -> int:
        found = next(each for each in self.model.graph.initializer if each.name == weight)
        return int(found.dims[0])

    def _op(self, kind: str, *inputs: str, name: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        node = helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return name

    def _constant(self, name: str, value: Any, kind: str) -> str:
        import numpy as np
        from onnx import numpy_helper

        array = np.ascontiguousarray(np.asarray(value, kind))
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _inner_names(nodes: Iterable[Any]) -> set[str]:
    """Collect what graphs inside of nodes, as `If` has them, take from the one around."""
    found: set[str] = set()
    for node in nodes:
        for each in node.attribute:
            inner = each.g.node if each.HasField("g") else ()
            found |= {name for one in inner for name in one.input} | _inner_names(inner)
    return found
