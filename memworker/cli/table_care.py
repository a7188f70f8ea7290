"""``memworker table optimize``, ``verify`` and ``repair``: keeping a table quick and sound."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from memworker.cli.options import Db, Json, StorageOption, TableName, database
from memworker.cli.output import printable, stderr_is_terminal
from memworker.cli.panics import panics_unseen
from memworker.cli.reports import print_result, size

if TYPE_CHECKING:
    from memworker.store import Repair, Verified

_REFRESH_S = 0.25
_SHOWN_IDS = 10


def optimize(
    db: Db,
    table: TableName,
    storage_option: StorageOption = None,
    keep_minutes: Annotated[
        float,
        typer.Option(
            min=0, max=1e6, help="Keep versions superseded so shortly ago; 0: the newest alone."
        ),
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Compact fragments, build and update indices, delete old versions: each step by itself.

    What was deleted or erased leaves the disk with the last version that holds it.
    Exit status 1 if a step failed; the others are done all the same.
    """
    from memworker.errors import NotOptimized
    from memworker.store import Table

    with panics_unseen():
        opened = Table.open(database(db, storage_option), table)
        before = opened.info()
        try:
            done = opened.optimize(keep_versions=timedelta(minutes=keep_minutes))
        except NotOptimized as error:
            done = error.report
        after = opened.info()
    result = {
        "table": table,
        "rows": after.rows,
        "version": after.version,
        "fragments_before": before.fragments,
        "fragments": after.fragments,
        "bytes_before": before.bytes_on_disk,
        "bytes_on_disk": after.bytes_on_disk,
        "index_built": "vector" in done.indexed,
        "versions_deleted": done.versions,
        "versions_kept": done.kept,
        "leftover_files_deleted": done.leftovers,
        "note": done.note,
        "steps": [step.to_dict() for step in done.steps],
    }
    lines = [
        *(printable(str(step)) for step in done.steps),
        f"{after.rows:,} rows: {before.fragments} fragments became {after.fragments},"
        f" {size(before.bytes_on_disk)} became {size(after.bytes_on_disk)}",
    ]
    print_result("\n".join(lines), result, as_json=as_json)
    if done.failed:
        failed = "; ".join(printable(str(step)) for step in done.failed)
        print(f"memworker: {failed}", file=sys.stderr)
        raise typer.Exit(1)


def verify(
    db: Db, table: TableName, storage_option: StorageOption = None, as_json: Json = False
) -> None:
    """Read every page, file and index of a table, and say what is damaged.

    Exit status 1 if anything is: `memworker table repair` puts it right.
    """
    from memworker.store import verify_table as run

    with panics_unseen(), _progress() as observer:
        found = run(database(db, storage_option), table, observer=observer)
    print_result(_findings(found), found.to_dict(), as_json=as_json)
    if not found.healthy:
        raise typer.Exit(1)


def repair(
    db: Db, table: TableName, storage_option: StorageOption = None, as_json: Json = False
) -> None:
    """Verify a table and put right what is damaged: rows, files, indices, a torn version.

    Damaged rows leave the table; the next ingest of their input writes them again.
    Exit status 1 if something stays damaged.
    """
    from memworker.store import repair_table as run

    with panics_unseen(), _progress() as observer:
        done = run(database(db, storage_option), table, observer=observer)
    print_result(_told(done), done.to_dict(), as_json=as_json)
    if not done.healthy:
        raise typer.Exit(1)


def _told(done: Repair) -> str:
    if done.before.healthy:
        return f"table {done.table!r} is healthy: version {done.version}, {done.rows:,} rows"
    lines = [
        f"table {done.table!r} was damaged:",
        *(f"  {printable(str(damage))}" for damage in done.before.damages),
        *_deeds(done),
        f"it is {'healthy' if done.healthy else 'STILL DAMAGED'} now: version {done.version},"
        f" {done.rows:,} rows",
        *(f"  {printable(str(damage))}" for damage in done.after.damages),
        *_to_do(done),
        *(f"note: {printable(note)}" for note in (*done.notes, *done.after.notes)),
    ]
    return "\n".join(lines)


def _deeds(done: Repair) -> Iterator[str]:
    if done.copied is not None:
        yield f"the copy of version {done.copied} that the last verification kept was put back"
    if done.damaged:
        gone = ", ".join(map(str, done.damaged))
        yield f"version {gone} was damaged and is set aside in {done.moved_to}"
    if done.deletions:
        yield f"which rows are deleted is known again: {', '.join(done.deletions)}"
    if done.rewritten:
        yield f"{done.rewritten:,} rows were sound and are written into another file"
    if done.removed:
        yield f"{done.removed:,} damaged rows are not in the table any more"
    if done.indices:
        yield f"indices built anew: {', '.join(done.indices)}"


def _to_do(done: Repair) -> Iterator[str]:
    if done.lost:
        yield f"Rows that were reported as written, up to version {done.journalled}, are gone"
    if done.lost or done.removed:
        yield (
            "Run the ingests of this table again (`memworker jobs` lists them): what is not in the"
            " table is written"
        )
    if done.ids:
        shown = ", ".join(repr(one) for one in done.ids[:_SHOWN_IDS])
        more = f" and {len(done.ids) - _SHOWN_IDS:,} more (--json has all)"
        yield f"Missing now: {shown}{more if len(done.ids) > _SHOWN_IDS else ''}"
    for path in done.sound:
        yield (
            f"Rows whose text is sound are kept in {path}; `memworker memory import` brings"
            " memories back from it"
        )
    for path in done.unsure:
        yield f"What could be read of the others is kept in {path}"


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
    if not stderr_is_terminal():
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
