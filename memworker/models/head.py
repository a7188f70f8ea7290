"""What follows pooling: dense layers, kept in fp32 under every precision, and the L2 norm.

sentence-transformers keeps each dense layer in a folder of its own. Graphs that are built here
take them in (`parts.finish`, `parts_bf16`); behind somebody else's graph a worker applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memworker.models.spec import Activation, Dense, ModelSpec, Pooling
from memworker.models.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

DENSE_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Layer:
    """``activation(x @ weight + bias)`` with weight ``[in, out]``."""

    weight: Matrix
    bias: Matrix
    activation: Activation


@dataclass(frozen=True, slots=True)
class Head:
    """How token rows become a vector: pooled, through the layers, to length one if asked."""

    pooling: Pooling
    normalize: bool
    layers: tuple[Layer, ...] = ()

    def width(self, hidden: int) -> int:
        """Return the vector's dimension behind an encoder of `hidden`."""
        return self.layers[-1].weight.shape[1] if self.layers else hidden


def read_head(spec: ModelSpec, folder: Path) -> Head:
    """Return a model's head with its weights; ModelCorrupt where they are not what was said."""
    return Head(spec.pooling, spec.normalize, read_layers(spec.dense, folder))


def read_layers(dense: Iterable[Dense], folder: Path) -> tuple[Layer, ...]:
    """Read each layer's weights, whatever kind of number they are kept in."""
    return tuple(_read(layer, folder / layer.folder / DENSE_WEIGHTS) for layer in dense)


def head_facts(spec: ModelSpec) -> list[str]:
    """Say what of the head is decided, for a fingerprint; weights have their hashes."""
    layers = [f"{d.folder} {d.inputs} {d.outputs} {d.bias} {d.activation}" for d in spec.dense]
    pairs = ["pairs"] if spec.pair_width else []
    return [spec.pooling, str(spec.normalize), *layers, *pairs]


def weight_files(dense: Iterable[Dense]) -> list[str]:
    """Name the files of the layers, by their paths in the model's folder."""
    return [f"{layer.folder}/{DENSE_WEIGHTS}" for layer in dense]


def apply_layers(layers: Iterable[Layer], rows: Matrix) -> Matrix:
    """Compute what the layers make of pooled rows, float32[n, dim]."""
    for layer in layers:
        rows = _ACTIVATIONS[layer.activation](rows @ layer.weight + layer.bias)
    return rows


def _read(layer: Dense, path: Path) -> Layer:
    import numpy as np

    tensors = Tensors(path, "linear.weight")
    if not layer.bias:
        weight = tensors.take("linear.weight", (layer.outputs, layer.inputs)).T
        zeros = np.zeros(layer.outputs, np.float32)
        return Layer(np.ascontiguousarray(weight), zeros, layer.activation)
    linear = tensors.linear("linear", layer.inputs, layer.outputs)
    return Layer(linear.weight, linear.bias, layer.activation)


def _gelu(rows: Matrix) -> Matrix:
    from math import erf, sqrt

    import numpy as np

    # There is no erf in numpy; these are rows of texts and not of tokens.
    errors = np.fromiter((erf(x / sqrt(2)) for x in rows.flat), np.float32, rows.size)
    return np.asarray(rows * (1 + errors.reshape(rows.shape)) / 2, np.float32)


def _sigmoid(rows: Matrix) -> Matrix:
    import numpy as np

    # By tanh, which cannot overflow.
    return np.asarray((np.tanh(rows / 2) + 1) / 2, np.float32)


def _tanh(rows: Matrix) -> Matrix:
    import numpy as np

    return np.tanh(rows)


def _relu(rows: Matrix) -> Matrix:
    import numpy as np

    return np.maximum(rows, np.float32(0))


_ACTIVATIONS: dict[Activation, Callable[[Matrix], Matrix]] = {
    Activation.IDENTITY: lambda rows: rows,
    Activation.TANH: _tanh,
    Activation.RELU: _relu,
    Activation.GELU: _gelu,
    Activation.SIGMOID: _sigmoid,
    Activation.SILU: lambda rows: rows * _sigmoid(rows),
}
