"""BERT-family safetensors to named float32 matrices, whatever their prefix or precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import ModelCorrupt, ModelUnsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BertShape:
    """The sizes of a BERT encoder, as its config.json gives them."""

    layers: int
    heads: int
    hidden: int
    feed_forward: int
    positions: int
    norm_eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight + bias`` with weight ``[in, out]``."""

    weight: Matrix
    bias: Matrix


@dataclass(frozen=True, slots=True)
class Norm:
    """Scale and shift of a layer normalisation, each ``[hidden]``."""

    scale: Matrix
    shift: Matrix


@dataclass(frozen=True, slots=True)
class BertLayer:
    query: Linear
    key: Linear
    value: Linear
    attention_out: Linear
    attention_norm: Norm
    feed_in: Linear
    feed_out: Linear
    feed_norm: Norm


@dataclass(frozen=True, slots=True)
class BertWeights:
    """All that a forward pass needs; embeddings are ``[rows, hidden]``."""

    shape: BertShape
    words: Matrix
    positions: Matrix
    token_types: Matrix
    norm: Norm
    layers: tuple[BertLayer, ...]


def read_bert(folder: Path, weights: str = "model.safetensors") -> BertWeights:
    """Read a BERT encoder from a folder with config.json and safetensors.

    Raises ModelUnsupported for another architecture and ModelCorrupt where
    tensors are missing or have other sizes than config.json says.
    """
    shape = bert_shape(read_config(folder))
    tensors = _Tensors(folder / weights)
    return BertWeights(
        shape=shape,
        words=tensors.take("embeddings.word_embeddings.weight", (None, shape.hidden)),
        positions=tensors.take(
            "embeddings.position_embeddings.weight", (shape.positions, shape.hidden)
        ),
        token_types=tensors.take("embeddings.token_type_embeddings.weight", (None, shape.hidden)),
        norm=tensors.norm("embeddings.LayerNorm", shape.hidden),
        layers=tuple(_layer(tensors, f"encoder.layer.{i}", shape) for i in range(shape.layers)),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json as a dict; raises ModelCorrupt where it cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}. Fetch the model again.") from error
    if not isinstance(config, dict):
        raise ModelCorrupt(f"{path} is no JSON object. Fetch the model again.")
    return config


def flops_per_token(folder: Path) -> float:
    """Return two operations for each weight of the linear layers, attention's own apart."""
    shape = bert_shape(read_config(folder))
    weights = 4 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.feed_forward
    return 2.0 * shape.layers * weights


def bert_shape(config: dict[str, Any]) -> BertShape:
    """Return the sizes, or raise ModelUnsupported saying what is not handled."""
    for key, expected in _HANDLED.items():
        if (found := config.get(key, expected)) != expected:
            raise ModelUnsupported(
                f"config.json has {key}={found!r}; from safetensors memworker builds only "
                f"{key}={expected!r}. An ONNX export of the model in its folder runs as it is."
            )
    try:
        return BertShape(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            hidden=int(config["hidden_size"]),
            feed_forward=int(config["intermediate_size"]),
            positions=int(config["max_position_embeddings"]),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelCorrupt(f"config.json lacks a size or has a wrong one: {error}") from error


_HANDLED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def _layer(tensors: _Tensors, at: str, shape: BertShape) -> BertLayer:
    hidden, inner = shape.hidden, shape.feed_forward
    return BertLayer(
        query=tensors.linear(f"{at}.attention.self.query", hidden, hidden),
        key=tensors.linear(f"{at}.attention.self.key", hidden, hidden),
        value=tensors.linear(f"{at}.attention.self.value", hidden, hidden),
        attention_out=tensors.linear(f"{at}.attention.output.dense", hidden, hidden),
        attention_norm=tensors.norm(f"{at}.attention.output.LayerNorm", hidden),
        feed_in=tensors.linear(f"{at}.intermediate.dense", hidden, inner),
        feed_out=tensors.linear(f"{at}.output.dense", inner, hidden),
        feed_norm=tensors.norm(f"{at}.output.LayerNorm", hidden),
    )


class _Tensors:
    """Tensors of one safetensors file by name, without the file's own prefix."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.path = path
        try:
            self._by_name: dict[str, Any] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelCorrupt(
                f"{path} cannot be read: {error}. It is damaged: copy or fetch it again."
            ) from error
        self._prefix = next((p for p in ("", "bert.") if f"{p}{_ANCHOR}" in self._by_name), "")

    def take(self, name: str, shape: tuple[int | None, ...]) -> Matrix:
        import numpy as np

        tensor = self._by_name.get(f"{self._prefix}{name}")
        if tensor is None:
            raise ModelCorrupt(f"{self.path} has no tensor {name}: not the weights of this config.")
        agrees = len(tensor.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not agrees:
            raise ModelCorrupt(
                f"{self.path}: {name} is {tensor.shape}, config.json makes it {shape}."
            )
        matrix: Matrix = np.ascontiguousarray(tensor, dtype=np.float32)
        return matrix

    def linear(self, at: str, inputs: int, outputs: int) -> Linear:
        import numpy as np

        weight = self.take(f"{at}.weight", (outputs, inputs))
        return Linear(np.ascontiguousarray(weight.T), self.take(f"{at}.bias", (outputs,)))

    def norm(self, at: str, hidden: int) -> Norm:
        return Norm(self.take(f"{at}.weight", (hidden,)), self.take(f"{at}.bias", (hidden,)))


_ANCHOR = "embeddings.word_embeddings.weight"
