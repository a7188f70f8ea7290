"""`memworker export`: a table's rows into a file for other programs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from memworker.cli import options
from memworker.cli.output import json_line
from memworker.errors import UsageError


def export(
    table: Annotated[str, typer.Argument(help="The table's name.", show_default=False)],
    *,
    db: options.TheDb,
    storage_option: options.StorageOption = None,
    where: options.Where = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="parquet, jsonl or csv; default: by the suffix of --output, else jsonl.",
            rich_help_panel=options.WRITING,
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="The file to write, or - for standard output.",
            rich_help_panel=options.WRITING,
        ),
    ] = "-",
    vectors: Annotated[
        bool,
        typer.Option("--vectors", help="Write the vectors, too.", rich_help_panel=options.WRITING),
    ] = False,
    times: Annotated[
        bool,
        typer.Option(
            "--times",
            help="Write when rows were made and changed, too.",
            rich_help_panel=options.WRITING,
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a table's rows to a file, from which `ingest` makes the same rows again.

    Chunks are written with their parents and places, which become metadata then.
    With --json the count is printed, to stderr where the rows go to stdout.
    """
    from memworker.ingestion import export_table
    from memworker.store import parse_where

    if output == "-" and (to or "jsonl") == "parquet":
        raise UsageError("parquet is written to a file; name it with --output")
    done = export_table(
        options.database(db, storage_option),
        table,
        sys.stdout.buffer if output == "-" else output,
        format=(to or "jsonl") if output == "-" else to,
        where=parse_where(where or []),
        vectors=vectors,
        times=times,
        overwrite=overwrite,
    )
    for name, called in done.renamed.items():
        print(
            f"memworker: the field {name!r} of the metadata is called {called!r} in the file,"
            f" for {name!r} is a column of its own there",
            file=sys.stderr,
        )
    if as_json:
        told = json_line(asdict(done))
        print(told, file=sys.stderr if output == "-" else sys.stdout)
    elif output != "-":
        print(f"{output}: {done.rows:,} rows of {len(done.columns)} columns")
