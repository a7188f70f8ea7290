"""`memworker embed`: files into a file of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options, progress, reports


def embed(
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
    text_field: options.TextField = ["text"],  # noqa: B006
    text_template: options.TextTemplate = None,
    id_field: options.IdField = "id",
    id_template: options.IdTemplate = None,
    kind: Annotated[
        str,
        typer.Option(
            help="What the texts are: passage, or query, which some models embed otherwise.",
            rich_help_panel=options.MODEL,
        ),
    ] = "passage",
    model: options.Model = DEFAULT_MODEL,
    precision: options.Precision = "fp32",
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    memory: options.MemoryLimit = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    out: Annotated[
        Path,
        typer.Option(
            help="FILE.npy or FILE.parquet.", show_default=False, rich_help_panel=options.WRITING
        ),
    ],
    on_error: options.OnError = "reject",
    rejects: Annotated[
        Path | None,
        typer.Option(
            help="Where rejected rows are listed; default: OUT.rejects.jsonl",
            rich_help_panel=options.WRITING,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Embed texts into a file: row i is text i, a rejected row is NaN (npy) or null (parquet)."""
    from memworker.ingestion import embed_to_file

    given = options.inputs_or_query(inputs, sql, from_)
    with progress.shown(limit, quiet=quiet) as observer:
        report = embed_to_file(
            given,
            out,
            model=model,
            precision=options.precision_of(precision, min_cosine),
            workers=workers,
            memory=memory,
            max_tokens=max_tokens,
            dim=dim,
            max_text_bytes=options.size_of(max_text_bytes),
            text_field=text_field,
            text_template=options.template(text_template),
            id_field=id_field,
            id_template=options.template(id_template),
            kind=kind,  # type: ignore[arg-type]
            dialect=options.dialect(delimiter, quotechar, escapechar, encoding, no_header),
            sql=sql,
            limit=limit,
            format=format,
            on_error=on_error,
            rejects=rejects,
            overwrite=overwrite,
            observer=observer,
        )
    reports.print_report(report, as_json=as_json, done=str(out))
