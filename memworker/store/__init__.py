"""The LanceDB table of records: what is written once, found again, and never twice."""

from memworker.store.change import Change, Edit
from memworker.store.cleanup import Cleaned
from memworker.store.commit import Appended, OnConflict
from memworker.store.filters import parse_where, scalar
from memworker.store.index import IndexInfo
from memworker.store.info import TableInfo
from memworker.store.keys import dedup_keys
from memworker.store.known import RowStatus
from memworker.store.lance import table_names
from memworker.store.lock import ensure_writable
from memworker.store.optimize import Optimized
from memworker.store.schema import VectorSpace, records
from memworker.store.search import MAX_LIMIT, Hit
from memworker.store.snapshot import Snapshot
from memworker.store.table import Table
from memworker.store.upkeep import Step, Tended, Upkeep

__all__ = [
    "MAX_LIMIT",
    "Appended",
    "Change",
    "Cleaned",
    "Edit",
    "Hit",
    "IndexInfo",
    "OnConflict",
    "Optimized",
    "RowStatus",
    "Snapshot",
    "Step",
    "Table",
    "TableInfo",
    "Tended",
    "Upkeep",
    "VectorSpace",
    "dedup_keys",
    "ensure_writable",
    "parse_where",
    "records",
    "scalar",
    "table_names",
]
