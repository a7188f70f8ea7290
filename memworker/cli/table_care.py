"""``memworker table verify``: whether a table is what it was written as."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from memworker.cli.options import Db, Json, TableName, print_result, printable, size

if TYPE_CHECKING:
    from memworker.store.verify import Verified

_REFRESH_S = 0.25


def verify(db: Db, table: TableName, as_json: Json = False) -> None:
    """Read every page, file and index of a table, and say what is damaged.

    Exit status 1 if anything is: `memworker table repair` puts it right.
    """
    from memworker.store.verify import verify as run

    with _panics_unseen(), _progress() as observer:
        found = run(db, table, observer=observer)
    print_result(_findings(found), found.to_dict(), as_json=as_json)
    if not found.healthy:
        raise typer.Exit(1)


def _findings(found: Verified) -> str:
    read = (
        f"version {found.version}, {found.read:,} of {found.rows:,} rows read,"
        f" {found.files:,} files, {size(found.bytes)}, {found.seconds:.1f} s"
    )
    lines = [f"table {found.table!r} is {'healthy' if found.healthy else 'DAMAGED'}: {read}"]
    lines += [f"  {printable(str(damage))}" for damage in found.damages]
    lines += [f"note: {printable(note)}" for note in found.notes]
    if found.damages:
        lines.append(
            f"{found.damaged_rows:,} rows are concerned. `memworker table repair` sets damaged rows"
            " aside and says what must be ingested again"
        )
    return "\n".join(lines)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show on a terminal how many rows were looked at."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    shown = [0.0]

    def observe(done: int, of: int) -> None:
        if time.monotonic() >= shown[0] + _REFRESH_S:
            shown[0] = time.monotonic()
            print(f"\r{done:,} of {of:,} rows", end="", file=sys.stderr, flush=True)

    try:
        yield observe
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _panics_unseen() -> Iterator[None]:
    """Keep what LanceDB's threads print of damaged pages off the screen; we say it ourselves."""
    ours = sys.stderr
    if ours is None:
        yield  # it is closed, and its number may be another file's
        return
    real = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stderr = os.fdopen(os.dup(real), "w", buffering=1, errors="replace")
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(real, 2)
        sys.stderr.close()
        sys.stderr = ours
        os.close(real)
        os.close(nowhere)
