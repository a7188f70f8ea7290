"""`memworker embed`: files into a file of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options, progress


def embed(
    inputs: options.Inputs,
    out: Annotated[Path, typer.Option(help="FILE.npy or FILE.parquet.", show_default=False)],
    text_field: options.TextField = "text",
    id_field: options.IdField = "id",
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
    on_error: Annotated[str, typer.Option(help="Bad rows: reject or stop.")] = "reject",
    rejects: Annotated[
        Path | None, typer.Option(help="Where rejected rows are listed; default: OUT.rejects.jsonl")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Embed texts into a file: row i is text i, a rejected row is NaN (npy) or null (parquet)."""
    from memworker.ingestion import embed_to_file

    with progress.shown(limit) as observer:
        report = embed_to_file(
            inputs,
            out,
            model=model,
            precision=options.precision_of(precision, min_cosine),
            workers=workers,
            memory=memory,
            max_tokens=max_tokens,
            dim=dim,
            max_text_bytes=options.size_of(max_text_bytes),
            text_field=text_field,
            id_field=id_field,
            limit=limit,
            format=format,
            on_error=on_error,
            rejects=rejects,
            overwrite=overwrite,
            observer=observer,
        )
    options.print_report(report, as_json=as_json, done=str(out))
