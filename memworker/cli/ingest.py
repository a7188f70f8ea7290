"""`memworker ingest`: files into a LanceDB table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options, progress, signals


def ingest(
    inputs: options.Inputs,
    db: options.Db,
    table: options.TableName,
    text_field: options.TextField = "text",
    id_field: options.IdField = "id",
    scope: options.ScopeOption = None,
    format: options.Format = None,
    model: options.Model = DEFAULT_MODEL,
    precision: options.Precision = "fp32",
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    memory: options.MemoryLimit = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    max_text_bytes: options.MaxTextBytes = None,
    limit: options.Limit = None,
    distance: Annotated[str, typer.Option(help="cosine or dot; for a new table.")] = "cosine",
    on_error: Annotated[str, typer.Option(help="Bad rows: reject or stop.")] = "reject",
    on_conflict: Annotated[
        str, typer.Option(help="Same id, other text: reject, skip or update.")
    ] = "reject",
    rejects: Annotated[
        Path | None, typer.Option(help="Where rejected rows are listed; default: beside the table.")
    ] = None,
    durable: Annotated[
        bool,
        typer.Option(
            "--durable",
            help="Force each commit to the disk (fsync), from now on, by any program.",
        ),
    ] = False,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for another ingest into this table to end."),
    ] = 0.0,
    as_json: options.Json = False,
) -> None:
    """Embed texts and add them to a LanceDB table, each row once.

    Running the same command again adds only what is not there yet. Ctrl-C or
    SIGTERM finishes what is in flight and commits it; a second one stops at once.
    """
    from memworker.ingestion import ingest as run

    with progress.shown(limit) as observer, signals.drained() as stop:
        report = run(
            inputs,
            db=db,
            table=table,
            text_field=text_field,
            id_field=id_field,
            scope=options.pairs(scope, "--scope"),
            format=format,
            model=model,
            precision=options.precision_of(precision, min_cosine),
            workers=workers,
            memory=memory,
            max_tokens=max_tokens,
            dim=dim,
            max_text_bytes=options.size_of(max_text_bytes),
            limit=limit,
            distance=distance,
            on_error=on_error,
            on_conflict=on_conflict,
            rejects=rejects,
            durable=durable,
            wait_s=wait,
            stop=stop,
            observer=observer,
        )
    options.print_report(report, as_json=as_json, done=f"{db} · {table}")
