"""`memworker sync`: a folder of documents kept in step with a LanceDB table."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options, progress, reports, signals
from memworker.cli.output import json_line, printable
from memworker.errors import MemworkerError

if TYPE_CHECKING:
    from memworker.ingestion import SyncReport

_REMOVING = "Removing"
_WORDS = {
    "files": "documents",
    "added": "added",
    "updated": "updated",
    "moved": "moved",
    "unchanged": "unchanged",
    "removed": "removed",
    "would_remove": "gone but not removed",
    "kept": "left out now but kept",
    "vanished": "vanished meanwhile",
    "rejected": "rejected",
    "conflicts": "conflicts",
}


def sync(
    folder: Annotated[str, typer.Argument(help="The folder.", show_default=False)],
    db: options.Db,
    table: options.TableName,
    storage_option: options.StorageOption = None,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Remove documents whose files are gone.", rich_help_panel=_REMOVING
        ),
    ] = False,
    delete_excluded: Annotated[
        bool,
        typer.Option(
            "--delete-excluded",
            help="With --delete: also those that are left out now.",
            rich_help_panel=_REMOVING,
        ),
    ] = False,
    allow_empty: Annotated[
        bool,
        typer.Option(
            "--allow-empty",
            help="With --delete: even if no document is left.",
            rich_help_panel=_REMOVING,
        ),
    ] = False,
    max_delete: Annotated[
        int | None,
        typer.Option(
            min=0, help="Remove nothing if more than this would go.", rich_help_panel=_REMOVING
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Only files of this pattern: '*.md', 'notes/**'; repeatable.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="No files or folders of this pattern; repeatable, wins over --include.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What the table calls the folder; ids begin with it. Default: its path.",
            rich_help_panel=options.WRITING,
        ),
    ] = None,
    check: Annotated[
        str,
        typer.Option(
            help="stamp: read what was written since; content: read every file.",
            rich_help_panel=options.INPUT,
        ),
    ] = "stamp",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be done, and write nothing.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on: compare again whenever something changed.",
            rich_help_panel=options.INPUT,
        ),
    ] = False,
    text_field: Annotated[
        str | None,
        typer.Option(
            help="Of JSON files: the field that holds the text.", rich_help_panel=options.TEXT
        ),
    ] = None,
    encoding: options.Encoding = None,
    model: options.Model = DEFAULT_MODEL,
    precision: options.Precision = "fp32",
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    memory: options.MemoryLimit = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    max_text_bytes: options.MaxTextBytes = None,
    chunk: options.Chunk = None,
    overlap: options.Overlap = None,
    contextual: options.Contextual = False,
    markdown: options.Markdown = None,
    distance: options.Distance = "cosine",
    on_conflict: Annotated[
        str,
        typer.Option(
            help="A row of others has the id: reject, skip or update.",
            rich_help_panel=options.WRITING,
        ),
    ] = "reject",
    rejects: options.Rejects = None,
    durable: options.Durable = False,
    wait: options.Wait = 0.0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Keep a LanceDB table in step with a folder: each file one document, its path the id.

    New files are added, changed ones updated, and with --delete those that are gone removed.
    Running the same command again does what is left, after whatever end of the first.
    """
    from memworker.ingestion import sync_folder

    with progress.shown(None, quiet=quiet) as observer, signals.drained() as stop:
        report = sync_folder(
            folder,
            db=options.database(db, storage_option),
            table=table,
            name=name,
            delete=delete,
            delete_excluded=delete_excluded,
            allow_empty=allow_empty,
            max_delete=max_delete,
            include=include or (),
            exclude=exclude or (),
            check=check,
            dry_run=dry_run,
            watch=watch,
            text_field=text_field,
            encoding=encoding,
            model=model,
            precision=options.precision_of(precision, min_cosine),
            workers=workers,
            memory=memory,
            max_tokens=max_tokens,
            dim=dim,
            max_text_bytes=options.size_of(max_text_bytes),
            chunk=options.chunking_of(chunk, overlap, contextual, markdown),
            distance=distance,
            on_conflict=on_conflict,
            rejects=rejects,
            durable=durable,
            wait_s=wait,
            stop=stop,
            observer=None if watch else observer,
            on_pass=partial(_tell_pass, as_json=as_json) if watch else None,
        )
    _print(report, as_json=as_json, done=f"{folder} · {db} · {table}", watched=watch)


def _tell_pass(report: SyncReport | MemworkerError, *, as_json: bool) -> None:
    """Say what a pass has done, if it did anything."""
    if isinstance(report, MemworkerError):
        print(f"memworker: {printable(str(report))}", file=sys.stderr, flush=True)
    elif as_json:
        reports.print_out(json_line(report.to_dict()))
    else:
        reports.print_out(f"{time.strftime('%H:%M:%S')} {_counted(report)}")


def _print(report: SyncReport, *, as_json: bool, done: str, watched: bool) -> None:
    """Print what became of the files; leave with 3 if some were rejected, 128 + n on a signal."""
    if not (watched and as_json):
        reports.print_out(json_line(report.to_dict()) if as_json else f"{done}\n{_told(report)}")
    for note in report.notes:
        print(f"memworker: {note}", file=sys.stderr)
    if report.would_remove and not (as_json or report.dry_run):
        print(
            f"memworker: {report.would_remove:,} documents are in the table whose files are gone;"
            " --delete removes them",
            file=sys.stderr,
        )
    if report.rejects is not None and not as_json:
        print(f"rejected files, with their reasons: {report.rejects}", file=sys.stderr)
    reports.leave_if_interrupted(report.interrupted, "what was embedded is committed")
    if report.rejected or report.rejects is not None:
        raise typer.Exit(3)


def _told(report: SyncReport) -> str:
    line = f"{'would be: ' if report.dry_run else ''}{_counted(report)}"
    if report.embedding is None:
        return line
    return f"{line}\n{reports.speed(report.embedding)}"


def _counted(report: SyncReport) -> str:
    return ", ".join(
        f"{value:,} {words}"
        for field, words in _WORDS.items()
        if (value := getattr(report, field)) or field == "files"
    )
