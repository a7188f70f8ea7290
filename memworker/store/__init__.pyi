from . import journal as journal, staged as staged
from .apart import built_apart as built_apart
from .change import Change as Change, Edit as Edit
from .chunks import TextStatus as TextStatus
from .claims import HeldRow as HeldRow, difference as difference
from .commit import Appended as Appended, OnConflict as OnConflict
from .disk import disk_errors as disk_errors
from .filters import parse_where as parse_where, scalar as scalar
from .fragments import FACTS as FACTS, Written as Written
from .info import TableInfo as TableInfo
from .journal import (
    Committed as Committed,
    Ended as Ended,
    InputFile as InputFile,
    Journal as Journal,
    JournalRecord as JournalRecord,
    Started as Started,
)
from .keys import Hashes as Hashes, dedup_keys as dedup_keys, keys_of_texts as keys_of_texts
from .known import IdStatus as IdStatus, KnownIds as KnownIds
from .lance import (
    database_path as database_path,
    table_name as table_name,
    table_names as table_names,
)
from .lock import (
    ensure_writable as ensure_writable,
    hold_job as hold_job,
    holder as holder,
    state_dir as state_dir,
)
from .outputs import Output as Output
from .places import (
    is_there as is_there,
    only_in_a_directory as only_in_a_directory,
    state_folder as state_folder,
    state_home as state_home,
)
from .policy import INDEX_MIN_ROWS as INDEX_MIN_ROWS, Step as Step
from .queries import check_search as check_search
from .reembed import Reembedding as Reembedding, build_indices as build_indices
from .repair import Repair as Repair, repair_table as repair_table
from .schema import (
    CHUNK_FIELDS as CHUNK_FIELDS,
    embedded_texts as embedded_texts,
    json_column as json_column,
    records as records,
)
from .search import MAX_LIMIT as MAX_LIMIT, Hit as Hit
from .snapshot import Snapshot as Snapshot
from .sortedruns import SortedRuns as SortedRuns
from .space import VectorSpace as VectorSpace
from .staged import Digests as Digests, Staged as Staged
from .table import Table as Table
from .verify import Verified as Verified, verify_table as verify_table
