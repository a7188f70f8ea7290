"""Worker processes that turn texts into vectors.

Names are loaded on first use: a worker imports this package too, and has no
use for the parent's side of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memworker.pool.pickling import import_dill

if TYPE_CHECKING:
    from memworker.pool.agreement import Agreement, compare_precision
    from memworker.pool.aio import AsyncEmbeddingPool
    from memworker.pool.echo import EchoLoader
    from memworker.pool.pool import EmbeddingPool
    from memworker.pool.requests import Embedded
    from memworker.pool.tuning import Trial, tune

# Before any module of this room imports multiprocess, which brings dill along.
import_dill()

__all__ = [
    "Agreement",
    "AsyncEmbeddingPool",
    "EchoLoader",
    "Embedded",
    "EmbeddingPool",
    "Trial",
    "compare_precision",
    "tune",
]

_MODULES = {
    "Agreement": "agreement",
    "AsyncEmbeddingPool": "aio",
    "EchoLoader": "echo",
    "EmbeddingPool": "pool",
    "Embedded": "requests",
    "Trial": "tuning",
    "compare_precision": "agreement",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'memworker.pool' has no attribute {name!r}")
    return getattr(import_module(f"memworker.pool.{_MODULES[name]}"), name)
