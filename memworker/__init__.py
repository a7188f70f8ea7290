"""Turn a stream of texts into searchable vectors in LanceDB.

Names are loaded on first use: a worker process imports this package too and
must not pay for LanceDB, and a caller of the pool must not pay for the store.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import memworker.ingest  # noqa: F401 - see below
from memworker import errors

if TYPE_CHECKING:
    from memworker.ingest import IngestReport, ingest
    from memworker.memory import AsyncMemory, Memory
    from memworker.pool import AsyncEmbeddingPool, EmbeddingPool
    from memworker.store import Table, VectorSpace, records, table_names

# The function `ingest` shares its name with its room, which the import system would put in its
# place at whatever moment the room is first imported. So that moment is now.
del globals()["ingest"]

__version__ = "0.1.0"

__all__ = [
    "AsyncEmbeddingPool",
    "AsyncMemory",
    "EmbeddingPool",
    "IngestReport",
    "Memory",
    "Table",
    "VectorSpace",
    "__version__",
    "errors",
    "ingest",
    "records",
    "table_names",
]

_ROOMS = {
    "AsyncEmbeddingPool": "memworker.pool",
    "AsyncMemory": "memworker.memory",
    "EmbeddingPool": "memworker.pool",
    "IngestReport": "memworker.ingest",
    "Memory": "memworker.memory",
    "Table": "memworker.store",
    "VectorSpace": "memworker.store",
    "ingest": "memworker.ingest",
    "records": "memworker.store",
    "table_names": "memworker.store",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'memworker' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
