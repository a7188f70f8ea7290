"""Models: names to verified files and to the ONNX graph that worker processes run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memworker.models.spec import ModelSpec, Pooling, Precision, ReadyModel

if TYPE_CHECKING:
    from memworker.models.ready import ready_model

__all__ = ["ModelSpec", "Pooling", "Precision", "ReadyModel", "ready_model"]


def __getattr__(name: str) -> Any:
    # A worker imports this package for the types in `spec` and needs none of the rest.
    if name in __all__:
        from memworker.models import ready

        return getattr(ready, name)
    raise AttributeError(f"module 'memworker.models' has no attribute {name!r}")
