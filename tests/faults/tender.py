# ruff: noqa: T201 - its lines tell whoever kills it what it is doing
"""A process that optimises a table and builds its indices again and again, to be killed at it."""

from __future__ import annotations

import random
import sys
import time
from datetime import timedelta
from pathlib import Path

from memworker.errors import MemworkerError, TableNotFound
from memworker.store import Table
from tests.store.helpers import index_scopes

# LanceDB's clusters want some rows.
_VECTOR_MIN_ROWS = 1000


def main() -> None:
    """Do one thing after the other, each told before it is begun, until the end."""
    db, name, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    draw = random.Random(seed)
    while True:
        try:
            table = Table.open(db, name)
            if not table.count():
                raise TableNotFound("no rows")
        except TableNotFound:
            time.sleep(0.05)
            continue
        what = draw.choice(("optimize", "index"))
        print(what, flush=True)
        try:
            if what == "optimize":
                table.optimize(keep_versions=timedelta(minutes=draw.choice((0, 60))))
            else:
                _index(table, draw)
        except MemworkerError as error:
            # Such as one that waited too long: the ingest must not notice, and we go on.
            print(f"error {error}", file=sys.stderr, flush=True)


def _index(table: Table, draw: random.Random) -> None:
    """Build the indices that are missing; first, one that there is goes."""
    indices = table.info().indices
    if indices:
        table._handle.drop_index(draw.choice(indices).name)
    index_scopes(table)
    table.maintenance.ensure_index("text")
    if table.count() >= _VECTOR_MIN_ROWS:
        table.maintenance.ensure_index("vector")


if __name__ == "__main__":
    main()
