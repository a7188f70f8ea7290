"""Readers, and the job that takes their rows through the pool into the store."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memworker.ingest.job import ingest
    from memworker.ingest.reembedding import ReembedReport, reembed
    from memworker.ingest.report import IngestReport
    from memworker.ingest.stop import Stop

__all__ = ["IngestReport", "ReembedReport", "Stop", "ingest", "reembed"]

_MODULES = {
    "IngestReport": "report",
    "ReembedReport": "reembedding",
    "Stop": "stop",
    "ingest": "job",
    "reembed": "reembedding",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'memworker.ingest' has no attribute {name!r}")
    return getattr(import_module(f"memworker.ingest.{_MODULES[name]}"), name)
