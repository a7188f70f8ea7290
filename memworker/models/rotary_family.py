"""What the families with rotary positions share: checks of config.json, and their graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models.family import Config
from memworker.models.head import Head
from memworker.models.rotary import RotaryShape, RotaryWeights, Turn
from memworker.models.spec import Precision
from memworker.models.tensors import Linear, Norm, Tensors


class RotaryFamily(ABC):
    """A family whose weights are `RotaryWeights`."""

    model_types: ClassVar[tuple[str, ...]]
    # Whether int8 fixes the scales of what is normalised; see `quantise_rotary`.
    fixed_scales: ClassVar[bool] = True

    @abstractmethod
    def shape(self, config: Config) -> RotaryShape:
        """Return the sizes; ModelUnsupported or ModelCorrupt where they cannot be taken."""

    @abstractmethod
    def read(self, path: Path, config: Config) -> RotaryWeights:
        """Read the weights of the safetensors file, or of the index of some, at `path`."""

    def check(self, config: Config) -> None:
        self.shape(config)

    def dim(self, config: Config) -> int:
        try:
            return self.shape(config).hidden
        except (ModelUnsupported, ModelCorrupt):
            # An ONNX file may lie there, which runs as it is.
            return 0

    def position_limit(self, config: Config) -> int:
        try:
            return self.shape(config).positions
        except (ModelUnsupported, ModelCorrupt):
            return 0

    def flops_per_token(self, config: Config) -> float:
        return self.shape(config).flops_per_token

    def recipe(self, precision: Precision) -> str:
        from memworker.models import graph_rotary, graph_rotary_bf16, graph_rotary_int8

        recipes = {
            Precision.INT8: graph_rotary_int8.RECIPE,
            Precision.BF16: graph_rotary_bf16.RECIPE,
        }
        return recipes.get(precision, graph_rotary.RECIPE)

    def layout(self, precision: Precision) -> str:
        from memworker.models import graph_rotary

        return graph_rotary.LAYOUT if precision is Precision.FP32 else ""

    def vocabulary(self, read: RotaryWeights) -> int:
        return len(read.words)

    def write_fp32(self, read: RotaryWeights, head: Head, path: Path) -> None:
        from memworker.models.graph_rotary import Exact, build_rotary

        products = [Exact(layer) for layer in read.layers]
        build_rotary(read, products, head, path)

    def write_int8(
        self, read: RotaryWeights, head: Head, texts: list[list[int]], path: Path
    ) -> None:
        from memworker.models.graph_rotary import build_rotary
        from memworker.models.graph_rotary_int8 import Small
        from memworker.models.quantise_rotary import quantise_rotary

        layers = quantise_rotary(read, texts, fixed=self.fixed_scales)
        products = [Small(layer) for layer in layers]
        build_rotary(read, products, head, path)

    def openvino_model(self, read: RotaryWeights, head: Head) -> Any:
        from memworker.models.graph_rotary_bf16 import token_rows
        from memworker.models.parts_bf16 import model_of

        return model_of(partial(token_rows, read), head, "memworker-rotary-bf16")


def turn_of(config: Config, kind: str, key: str, theta: float, *, scaling: str = "") -> Turn:
    """Return how layers of a kind turn, from rope_parameters or from the keys of older configs.

    `key` names theta there, and `scaling` its scaling; `theta` is for where nothing says.
    Raises ModelUnsupported for a scaling that is not linear.
    """
    at, rope = "rope_parameters", config.get("rope_parameters")
    if isinstance(rope, dict) and kind in rope:
        at, rope = f"rope_parameters.{kind}", rope[kind]
    if not rope and scaling:
        at, rope = scaling, config.get(scaling)
    rope = rope or {}
    if not isinstance(rope, dict):
        raise ModelCorrupt(f"config.json has {at}={rope!r}: no JSON object.")
    name = rope.get("rope_type") or rope.get("type") or "default"
    if name not in ("default", "linear"):
        raise ModelUnsupported(
            f"config.json has {at}={rope!r}; from safetensors memworker builds only rope_type="
            "'default' or 'linear'. An ONNX export of the model in its folder runs as it is."
        )
    found = rope.get("rope_theta") or config.get(key) or theta
    factor = rope.get("factor", 1.0) if name == "linear" else 1.0
    return Turn(number({key: found}, key), number({"factor": factor}, "factor"))


def layer_kinds(config: Config, default: list[str]) -> list[str]:
    """Return full_attention or sliding_attention for each layer."""
    kinds = config.get("layer_types") or default
    known = {"full_attention", "sliding_attention"}
    if not isinstance(kinds, list) or len(kinds) != len(default):
        raise ModelCorrupt(f"config.json has layer_types={kinds!r} for {len(default)} layers.")
    if strange := set(map(str, kinds)) - known:
        raise ModelUnsupported(
            f"config.json has layer_types with {', '.join(sorted(strange))}; from safetensors "
            f"memworker builds only {' and '.join(sorted(known))}. "
            "An ONNX export of the model in its folder runs as it is."
        )
    return kinds


def number(config: Config, key: str, default: float | None = None) -> float:
    """Return a number above 0 of config.json; ModelCorrupt where it is none."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ModelCorrupt(f"config.json lacks a size or has a wrong one: {key} is {value!r}.")
    return float(value)


def share(whole: int, parts: int, what: str) -> int:
    """Return a part of a size; ModelCorrupt where it is not whole."""
    if whole % parts:
        raise ModelCorrupt(f"config.json has a wrong size: {what} is {whole} by {parts}.")
    return whole // parts


def linear(tensors: Tensors, at: str, inputs: int, outputs: int) -> Linear:
    """Take a linear layer that may have no bias."""
    import numpy as np

    weight = np.ascontiguousarray(tensors.take(f"{at}.weight", (outputs, inputs)).T)
    has_bias = f"{at}.bias" in tensors
    bias = tensors.take(f"{at}.bias", (outputs,)) if has_bias else np.zeros(outputs, np.float32)
    return Linear(weight, bias)


def split(together: Linear, times: int) -> list[Linear]:
    """Part a linear layer by its outputs into equally wide ones."""
    import numpy as np

    weights = np.split(together.weight, times, axis=1)
    biases = np.split(together.bias, times)
    return [
        Linear(np.ascontiguousarray(weight), bias)
        for weight, bias in zip(weights, biases, strict=True)
    ]


def norm(tensors: Tensors, at: str, width: int, more: float = 0.0) -> Norm:
    """Take a normalisation that may have no shift; its scale is kept as what `more` lacks."""
    import numpy as np

    scale = tensors.take(f"{at}.weight", (width,)) + np.float32(more)
    has_shift = f"{at}.bias" in tensors
    shift = tensors.take(f"{at}.bias", (width,)) if has_shift else np.zeros(width, np.float32)
    return Norm(scale, shift)
