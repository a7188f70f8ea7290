from . import errors as errors
from .chunking import Chunking as Chunking
from .doctor import examine_machine as examine_machine
from .ingestion import (
    IngestPlan as IngestPlan,
    IngestReport as IngestReport,
    Stop as Stop,
    SyncReport as SyncReport,
    embed_to_file as embed_to_file,
    export_table as export_table,
    ingest as ingest,
    list_runs as list_runs,
    plan_ingest as plan_ingest,
    reembed as reembed,
    sync_folder as sync_folder,
)
from .memory import AsyncMemory as AsyncMemory, Memory as Memory
from .models import (
    DEFAULT_MODEL as DEFAULT_MODEL,
    list_models as list_models,
    pull_model as pull_model,
    verify_model as verify_model,
)
from .overview import show_table as show_table
from .pool import (
    AsyncEmbeddingPool as AsyncEmbeddingPool,
    Auto as Auto,
    EmbeddingPool as EmbeddingPool,
    Ranked as Ranked,
    Reranker as Reranker,
    compare_precision as compare_precision,
    tune as tune,
)
from .store import (
    Table as Table,
    VectorSpace as VectorSpace,
    parse_where as parse_where,
    records as records,
    repair_table as repair_table,
    table_names as table_names,
    verify_table as verify_table,
)

__version__: str
