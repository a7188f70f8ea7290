"""`memworker jobs`: what was done, and what is unfinished."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memworker.cli.options import Db, Json, StorageOption, database
from memworker.cli.output import json_line

if TYPE_CHECKING:
    from memworker.ingestion import Run


def jobs(
    db: Db,
    table: Annotated[
        str | None, typer.Option("--table", help="Of this table only; default: of all.")
    ] = None,
    storage_option: StorageOption = None,
    as_json: Json = False,
) -> None:
    """List the ingests into a database: input, beginning, outcome, counts, version."""
    from memworker.ingestion import list_runs

    found = list_runs(database(db, storage_option), table)
    if as_json:
        typer.echo(json_line({"jobs": [_as_dict(run) for run in found]}))
        return
    for run in found:
        typer.echo(_line(run))
    if not found:
        typer.echo("no ingest has been noted here")


def _as_dict(run: Run) -> dict[str, Any]:
    return {**asdict(run), "unfinished": run.unfinished}


def _line(run: Run) -> str:
    names = ", ".join(run.inputs[:3]) + (", …" if len(run.inputs) > 3 else "")
    version = "" if run.version is None else f", version {run.version}"
    why = f" ({run.why})" if run.why else ""
    return (
        f"{run.started}  {run.table}  {run.outcome}{why}: {names}: {run.written:,} written{version}"
    )
