"""Memories of agents in one LanceDB table: added, searched, updated, deleted, with their history.

Names are loaded on first use: the coroutines' face has no part in a script without any.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memworker.memory.aio import AsyncMemory
    from memworker.memory.core import pool_like
    from memworker.memory.memory import Memory
    from memworker.memory.transfer import Flaw, Imported, exported, import_lines

__all__ = [
    "AsyncMemory",
    "Flaw",
    "Imported",
    "Memory",
    "exported",
    "import_lines",
    "pool_like",
]

_MODULES = {
    "AsyncMemory": "aio",
    "Flaw": "transfer",
    "Imported": "transfer",
    "Memory": "memory",
    "exported": "transfer",
    "import_lines": "transfer",
    "pool_like": "core",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'memworker.memory' has no attribute {name!r}")
    return getattr(import_module(f"memworker.memory.{_MODULES[name]}"), name)
