"""Small batches and a vector space for the store's tests."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa

from memworker.store import Table, VectorSpace, records
from memworker.store.policy import SCALAR_COLUMNS

DIM = 8
SPACE = VectorSpace("all-MiniLM-L6-v2", "fp32", 256, DIM, "f" * 16)


def vector_of(text: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM).astype(np.float32)


def batch(rows, **columns):
    """Build a batch from (id, text) pairs; the vector follows from the text."""
    ids, texts = [row[0] for row in rows], [row[1] for row in rows]
    vectors = np.array([vector_of(text) for text in texts], np.float32).reshape(-1, DIM)
    return records(pa.array(ids, pa.string()), pa.array(texts, pa.string()), vectors, **columns)


def numbered(start, stop):
    return batch([(f"id-{i}", f"text {i}") for i in range(start, stop)])


def texts_by_id(table):
    found = table.rows(columns=["id", "text"])
    pairs = list(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))
    assert len(dict(pairs)) == len(pairs), "an id is there twice"
    return dict(pairs)


def index_scopes(table: Table) -> tuple[str, ...]:
    """Build the indices on ids, keys and scopes that are missing; return their columns."""
    return tuple(name for name in SCALAR_COLUMNS if table.maintenance.ensure_index(name))
