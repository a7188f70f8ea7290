"""Writes an ONNX graph node by node, its large weights page-aligned in one file beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS_FILE = "weights.bin"
# onnxruntime maps external data where its offset is a multiple of the page size.
_PAGE_BYTES = 4096
_INLINE_BELOW_BYTES = 4096
_OPSET = 17
_IR_VERSION = 8


class GraphWriter:
    """Collects nodes and weights of one graph; `save` writes both files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[Any] = []
        self._weights: dict[str, NDArray[Any]] = {}

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        self._weights[name] = array
        return name

    def op(
        self,
        kind: str,
        *inputs: str,
        name: str,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> str:
        """Add a node and return its first output, called `name`; the others are unused."""
        from onnx import helper

        spare = [f"{name}.{number}" for number in range(1, outputs)]
        node = helper.make_node(
            kind, list(inputs), [name, *spare], name=name, domain=domain, **attributes
        )
        self._nodes.append(node)
        return name

    def fused(self, kind: str, *inputs: str, name: str, outputs: int = 1, **attributes: Any) -> str:
        """Add one of onnxruntime's own operators."""
        return self.op(
            kind, *inputs, name=name, domain="com.microsoft", outputs=outputs, **attributes
        )

    def either(
        self,
        condition: str,
        then: Callable[[GraphWriter], str],
        otherwise: Callable[[GraphWriter], str],
        *,
        name: str,
    ) -> str:
        """Add a node that runs what one of both writes, and return its output, called `name`.

        Both may name nodes and weights of this graph, and bring no weights of their own.
        """
        branches = {"then_branch": _branch(then), "else_branch": _branch(otherwise)}
        return self.op("If", condition, name=name, **branches)

    def repeat(self, times: str, write: Callable[[GraphWriter, str], str], *, name: str) -> str:
        """Add a node that runs what `write` writes so many times, and stacks its outputs.

        `write` is given the name of the turn's number, int64[], and keeps to what branches
        of `either` keep to. All outputs must have one shape.
        """
        from onnx import TensorProto, helper

        inner, turn, go = GraphWriter("turn"), f"{name}.turn", f"{name}.go"
        result = write(inner, turn)
        assert not inner._weights, "a turn uses the weights of the graph around it"
        inner.op("Identity", go, name=f"{go}.on")
        body = helper.make_graph(
            inner._nodes,
            f"{name}.body",
            [
                helper.make_tensor_value_info(turn, TensorProto.INT64, []),
                helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(f"{go}.on", TensorProto.BOOL, []),
                helper.make_empty_tensor_value_info(result),
            ],
        )
        return self.op("Loop", times, "", name=name, body=body)

    def save(self, path: Path, inputs: list[Any], outputs: list[Any]) -> None:
        """Write the graph to `path` and its large weights to WEIGHTS_FILE in the same folder."""
        import onnx
        from onnx import helper

        weights = _write_weights(self._weights, path.parent / WEIGHTS_FILE)
        graph = helper.make_graph(self._nodes, self.name, inputs, outputs, weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="memworker"
        )
        onnx.save_model(model, str(path))


def _branch(write: Callable[[GraphWriter], str]) -> Any:
    from onnx import helper

    inner = GraphWriter("branch")
    result = write(inner)
    assert not inner._weights, "a branch uses the weights of the graph around it"
    return helper.make_graph(
        inner._nodes, f"{result}.branch", [], [helper.make_empty_tensor_value_info(result)]
    )


def tensor_info(name: str, kind: str, shape: list[str | int]) -> Any:
    """Describe a graph input or output; `kind` is "int64" or "float"."""
    from onnx import TensorProto, helper

    element = {"int64": TensorProto.INT64, "float": TensorProto.FLOAT}[kind]
    return helper.make_tensor_value_info(name, element, shape)


def _write_weights(weights: dict[str, NDArray[Any]], path: Path) -> list[Any]:
    import numpy as np
    from onnx import numpy_helper

    tensors = []
    with path.open("wb") as file:
        for name, array in weights.items():
            if array.nbytes < _INLINE_BELOW_BYTES:
                tensors.append(numpy_helper.from_array(array, name))
                continue
            file.write(b"\0" * (-file.tell() % _PAGE_BYTES))
            tensors.append(_external(name, array, file.tell(), path.name))
            # As it lies, where it lies in order: a table of 250,000 words is not copied.
            file.write(np.ascontiguousarray(array).data)
    return tensors


def _external(name: str, array: NDArray[Any], offset: int, location: str) -> Any:
    from onnx import TensorProto, helper

    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    facts = {"location": location, "offset": offset, "length": array.nbytes}
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
