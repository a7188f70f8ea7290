"""What a table is and holds, for `info` and for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.paths import Place
from memworker.store import index, places
from memworker.store.index import IndexInfo
from memworker.store.schema import is_durable, read_field_metadata

if TYPE_CHECKING:
    from lancedb.table import LanceTable


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What a table is and holds."""

    name: str
    rows: int
    version: int
    model: str
    precision: str
    max_tokens: int
    dim: int
    distance: str
    durable: bool
    fingerprint: str
    identity: str
    fragments: int
    bytes_on_disk: int
    indices: tuple[IndexInfo, ...]


def describe(handle: LanceTable, db: Place, name: str) -> TableInfo:
    """Return what the table is and holds now."""
    space, identity = read_field_metadata(handle.schema, name)
    stats = handle.stats()
    return TableInfo(
        name=name,
        rows=handle.count_rows(),
        version=int(handle.version),
        model=space.model,
        precision=space.precision,
        max_tokens=space.max_tokens,
        dim=space.dim,
        distance=space.distance,
        durable=is_durable(handle.schema),
        fingerprint=space.fingerprint,
        identity=identity,
        fragments=stats["fragment_stats"]["num_fragments"],
        bytes_on_disk=places.bytes_under(places.table_folder(db, name)),
        indices=index.describe(handle),
    )
