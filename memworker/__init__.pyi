from . import errors as errors
from .ingestion import IngestReport as IngestReport, ingest as ingest
from .memory import AsyncMemory as AsyncMemory, Memory as Memory
from .pool import AsyncEmbeddingPool as AsyncEmbeddingPool, EmbeddingPool as EmbeddingPool
from .store import (
    Table as Table,
    VectorSpace as VectorSpace,
    records as records,
    table_names as table_names,
)

__version__: str
