"""Re-embedding, the store's side: which texts want a vector, and the one commit that puts all in.

::

    table ─► missing() ─► (a pool) ─► Staged.add ─► DB/.memworker/TABLE/reembed/
      ▲                                                        │
      └────────── switch(): one commit of every row ◄──────────┘

Until that commit the table is as it was: readers, writers and indices do not
notice. A second column in the table, filled batch by batch, was measured and
left: LanceDB's merge of some columns writes whole rows anew and reads every
column of the table for each batch (0.3 s for 4,096 rows at 100,000, and 0.5 GB of
memory), and each moved row leaves the index of the old vectors. Here the rows are
written once, in batches of a bounded size, 100,000 in 1 s.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from memworker.errors import StoreError
from memworker.failpoints import reach
from memworker.store import durable, index, lock, words
from memworker.store.lance import connect, lance_errors, open_table
from memworker.store.schema import (
    bad_vectors,
    new_field_metadata,
    read_field_metadata,
    table_schema,
    vector_array,
)
from memworker.store.staged import Digests, Staged, text_digests

if TYPE_CHECKING:
    from lancedb.table import LanceTable

# What is read, embedded and copied at once, as large as a reader's chunk.
CHUNK_ROWS = 8192
VECTOR_INDEX, TEXT_INDEX = "vector", "text"
