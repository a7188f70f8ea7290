"""Models: names to verified files and to the ONNX graph that worker processes run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memworker.models.spec import ModelSpec, Pooling, Precision, ReadyModel

if TYPE_CHECKING:
    from memworker.models.ready import (
        ModelListing,
        list_models,
        pull_model,
        ready_model,
        verify_model,
    )

__all__ = [
    "ModelListing",
    "ModelSpec",
    "Pooling",
    "Precision",
    "ReadyModel",
    "list_models",
    "pull_model",
    "ready_model",
    "verify_model",
]


def __getattr__(name: str) -> Any:
    # A worker imports this package for the types in `spec` and needs none of the rest.
    if name not in __all__:
        raise AttributeError(f"module 'memworker.models' has no attribute {name!r}")
    return getattr(import_module("memworker.models.ready"), name)
