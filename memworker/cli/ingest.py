"""`memworker ingest`: files into a LanceDB table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options, plans, progress, reports, signals


def ingest(
    *,
    inputs: options.InputsOrQuery = None,
    format: options.Format = None,
    encoding: options.Encoding = None,
    delimiter: options.Delimiter = None,
    quotechar: options.QuoteChar = None,
    escapechar: options.EscapeChar = None,
    no_header: options.NoHeader = False,
    sql: options.Sql = None,
    from_: options.From = None,
    limit: options.Limit = None,
    max_text_bytes: options.MaxTextBytes = None,
    chunk: options.Chunk = None,
    overlap: options.Overlap = None,
    contextual: options.Contextual = False,
    markdown: options.Markdown = None,
    text_field: options.TextField = ["text"],  # noqa: B006
    text_template: options.TextTemplate = None,
    id_field: options.IdField = "id",
    id_template: options.IdTemplate = None,
    scope: options.ScopeOption = None,
    metadata: options.MetadataFields = "all",
    model: options.Model = DEFAULT_MODEL,
    precision: options.Precision = "fp32",
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    memory: options.MemoryLimit = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    db: options.Db,
    table: options.TableName,
    storage_option: options.StorageOption = None,
    distance: options.Distance = "cosine",
    on_error: options.OnError = "reject",
    on_conflict: Annotated[
        str | None,
        typer.Option(
            help="Same id, other text: reject, skip or update; default: reject, of chunks update.",
            show_default=False,
            rich_help_panel=options.WRITING,
        ),
    ] = None,
    rejects: options.Rejects = None,
    durable: options.Durable = False,
    wait: options.Wait = 0.0,
    runner: options.Runner = "local",
    address: options.Address = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what would be read, how long it takes and how large it gets.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Embed texts and add them to a LanceDB table, each row once.

    Running the same command again adds only what is not there yet. Ctrl-C or
    SIGTERM finishes what is in flight and commits it; a second one stops at once.
    """
    from memworker.ingestion import ingest as run, plan_ingest

    given = options.inputs_or_query(inputs, sql, from_)
    asked: dict[str, Any] = {
        "db": options.database(db, storage_option),
        "table": table,
        "text_field": text_field,
        "text_template": options.template(text_template),
        "id_field": id_field,
        "id_template": options.template(id_template),
        "scope": options.pairs(scope, "--scope"),
        "metadata": metadata,
        "format": format,
        "dialect": options.dialect(delimiter, quotechar, escapechar, encoding, no_header),
        "sql": sql,
        "model": model,
        "precision": options.precision_of(precision, min_cosine),
        "workers": workers,
        "memory": memory,
        "max_tokens": max_tokens,
        "dim": dim,
        "max_text_bytes": options.size_of(max_text_bytes),
        "limit": limit,
        "distance": distance,
        "chunk": options.chunking_of(chunk, overlap, contextual, markdown),
    }
    if dry_run:
        plans.print_plan(plan_ingest(given, **asked), as_json=as_json)
        return
    with progress.shown(limit, quiet=quiet) as observer, signals.drained() as stop:
        report = run(
            given,
            **asked,
            on_error=on_error,
            on_conflict=on_conflict,
            rejects=rejects,
            durable=durable,
            wait_s=wait,
            stop=stop,
            observer=observer,
            runner=runner,
            address=address,
        )
    reports.print_report(report, as_json=as_json, done=f"{db} · {table}")
