"""What memworker must know of an architecture, and which there are: `family_of` a config.json.

A family is an object in a module of its own. It says what of a config it handles, reads the
weights, and writes the graph in each precision; everything else asks it, and never which it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models.head import Head
from memworker.models.spec import Precision

Config = dict[str, Any]


class Family(Protocol):
    """One architecture, or some that differ by names and constants only.

    What `read` returns is the family's own, and handed to its `write_…` and `openvino_model`.
    """

    @property
    def model_types(self) -> tuple[str, ...]:
        """What config.json calls it in `model_type`."""
        ...

    def check(self, config: Config) -> None:
        """Raise ModelUnsupported, with key and value, for what is not handled; or ModelCorrupt."""
        ...

    def dim(self, config: Config) -> int:
        """Return how many numbers a token's row has; 0 where the config does not say."""
        ...

    def position_limit(self, config: Config) -> int:
        """Return how many tokens a text may have, special ones included; 0 for any number."""
        ...

    def flops_per_token(self, config: Config) -> float:
        """Return two operations for each weight of the linear layers, attention's own apart."""
        ...

    def recipe(self, precision: Precision) -> str:
        """Return the name of the graph's recipe, part of the fingerprint."""
        ...

    def layout(self, precision: Precision) -> str:
        """Return how that recipe is laid out, "" where it leaves nothing open."""
        ...

    def read(self, path: Path, config: Config) -> Any:
        """Read the weights of the safetensors file, or of the index of some, at `path`."""
        ...

    def vocabulary(self, read: Any) -> int:
        """Return how many tokens there are."""
        ...

    def write_fp32(self, read: Any, head: Head, path: Path) -> None:
        """Write the ONNX graph and its weights."""
        ...

    def write_int8(self, read: Any, head: Head, texts: list[list[int]], path: Path) -> None:
        """Write the ONNX graph in 8 bits, calibrated on the token ids of some texts."""
        ...

    def openvino_model(self, read: Any, head: Head) -> Any:
        """Return OpenVINO's graph; this process may load OpenVINO."""
        ...


def family_of(config: Config) -> Family:
    """Return the family of a config.json; ModelUnsupported where memworker does not build it."""
    family = known_family(config)
    if family is None:
        known = ", ".join(sorted(kind for family in _families() for kind in family.model_types))
        raise ModelUnsupported(
            f"config.json has model_type={config.get('model_type')!r}; from safetensors memworker "
            f"builds {known}. An ONNX export of the model in its folder runs as it is."
        )
    return family


def known_family(config: Config) -> Family | None:
    """Return the family of that model_type, which may still refuse the config; or None."""
    # The first BERTs had no other to be told from.
    kind = config.get("model_type", "bert")
    return next((family for family in _families() if kind in family.model_types), None)


def _families() -> tuple[Family, ...]:
    from memworker.models import bert_like
    from memworker.models.decoders import Gemma3, Qwen3
    from memworker.models.modernbert import ModernBert
    from memworker.models.nomic_bert import NomicBert

    return (*bert_like.FAMILIES, NomicBert(), ModernBert(), Qwen3(), Gemma3())


def read_config(folder: Path) -> Config:
    """Return config.json as a dict; raises ModelCorrupt where it cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{path} cannot be read: {error}. Fetch the model again.") from error
    if not isinstance(config, dict):
        raise ModelCorrupt(f"{path} is no JSON object. Fetch the model again.")
    return config


def refuse_others(config: Config, handled: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ModelUnsupported for the first key whose value is not among those that are handled.

    A key that is not there stands for the first of its values.
    """
    for key, values in handled.items():
        found = config.get(key, values[0])
        # True is no 1, nor False a 0.
        if not any(found == value and type(found) is type(value) for value in values):
            raise ModelUnsupported(
                f"config.json has {key}={found!r}; from safetensors memworker builds only "
                f"{key}={' or '.join(map(repr, values))}. "
                "An ONNX export of the model in its folder runs as it is."
            )


def size(config: Config, key: str, default: int | None = None, *, least: int = 1) -> int:
    """Return a size that config.json gives; ModelCorrupt where it is missing or no such number."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelCorrupt(f"config.json lacks a size or has a wrong one: {key} is {value!r}.")
    return value
