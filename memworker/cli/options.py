"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, overload

import typer

from memworker.errors import UsageError

if TYPE_CHECKING:
    from memworker import Auto
    from memworker.chunking import Chunking
    from memworker.ingestion import Dialect
    from memworker.paths import DatabaseGiven

# The groups in which --help shows what a verb takes.
INPUT, TEXT, MODEL, WRITING, OUTPUT = "Input", "Text", "Model", "Writing", "Output"

Inputs = Annotated[
    list[str],
    typer.Argument(help="Files, folders, globs, or - for standard input.", show_default=False),
]
InputsOrQuery = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, globs, or - for standard input; none with --sql.", show_default=False
    ),
]
Sql = Annotated[
    str | None,
    typer.Option(
        "--sql", help="Read the rows of this SELECT of a database.", rich_help_panel=INPUT
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="The database that --sql asks: sqlite:///FILE, duckdb:///FILE, or a table's file,"
        " which the query calls input.",
        rich_help_panel=INPUT,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="jsonl, csv, tsv, parquet, arrow, txt or document; default: by suffix, stdin jsonl.",
        rich_help_panel=INPUT,
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="Of text, such as latin-1; default: UTF-8, UTF-16 and UTF-32 are told apart.",
        rich_help_panel=INPUT,
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        help="What parts the cells of csv, such as ';' or tab; default: as its header shows.",
        rich_help_panel=INPUT,
    ),
]
QuoteChar = Annotated[
    str | None,
    typer.Option(
        "--quotechar",
        help="What cells of csv are quoted by, or none; default: \" or ', as the first lines show.",
        rich_help_panel=INPUT,
    ),
]
EscapeChar = Annotated[
    str | None,
    typer.Option(
        "--escapechar",
        help="What stands before a quote within a cell of csv, or none; default: a second quote, or"
        " a backslash if the first rows show it.",
        rich_help_panel=INPUT,
    ),
]
NoHeader = Annotated[
    bool,
    typer.Option(
        "--no-header",
        help="The first line of csv is a row; columns are called 1, 2, ….",
        rich_help_panel=INPUT,
    ),
]
Limit = Annotated[
    int | None, typer.Option(help="Read this many rows at most.", rich_help_panel=INPUT)
]
MaxTextBytes = Annotated[
    str | None,
    typer.Option(
        help="Reject texts that are longer, for example 4MB; default: 1 MiB.",
        rich_help_panel=INPUT,
    ),
]
TextField = Annotated[
    list[str],
    typer.Option(
        help="The field that holds the text, a.b for one within another; repeatable: each on a"
        " line of its own.",
        rich_help_panel=TEXT,
    ),
]
TextTemplate = Annotated[
    str | None,
    typer.Option(
        help=r"The text made of fields: '{title}\n{body}'; {{ and }} are braces.",
        rich_help_panel=TEXT,
    ),
]
IdField = Annotated[
    str,
    typer.Option(help="The field that holds the id, where there is one.", rich_help_panel=TEXT),
]
IdTemplate = Annotated[
    str | None,
    typer.Option(help="The id made of fields: '{source}-{number}'.", rich_help_panel=TEXT),
]
ScopeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        help="COLUMN=FIELD: take user_id, agent_id or run_id from a field; repeatable.",
        rich_help_panel=TEXT,
    ),
]
MetadataFields = Annotated[
    str,
    typer.Option(
        "--metadata",
        help="Which fields are kept beside the text: all others, FIELD,…, or none.",
        rich_help_panel=TEXT,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="A name from `memworker models list`, or a model's directory.", rich_help_panel=MODEL
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="How the linear layers are computed: fp32, int8, bf16; or auto, the fastest that is"
        " near enough to fp32 (see --min-cosine).",
        rich_help_panel=MODEL,
    ),
]
MinCosine = Annotated[
    float | None,
    typer.Option(
        help="With --precision auto: the least mean cosine to fp32 that will do.",
        show_default="0.998",
        rich_help_panel=MODEL,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes; default: the usable physical cores.", rich_help_panel=MODEL
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        help="Hold no more than this in all, for example 4GB: fewer, smaller workers.",
        rich_help_panel=MODEL,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Truncate texts here; default: the model's own limit.", rich_help_panel=MODEL
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(
        help="Keep the first so many numbers of each vector, normalised again; default: all.",
        rich_help_panel=MODEL,
    ),
]
Db = Annotated[
    str,
    typer.Option(
        "--db",
        help="The LanceDB directory, or s3://…, gs://…, az://….",
        show_default=False,
        rich_help_panel=WRITING,
    ),
]
TableName = Annotated[
    str,
    typer.Option("--table", help="The table's name.", show_default=False, rich_help_panel=WRITING),
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        help="KEY=VALUE of LanceDB's storage options, where the database is s3://…, gs://… or"
        " az://…; repeatable.",
        show_default=False,
        rich_help_panel=WRITING,
    ),
]
# Of what is read alone.
TheDb = Annotated[
    str,
    typer.Option(
        "--db",
        help="The LanceDB directory, or s3://…, gs://…, az://….",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
TheTable = Annotated[
    str,
    typer.Option("--table", help="The table's name.", show_default=False, rich_help_panel=INPUT),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        help="Only rows that meet FIELD=VALUE, n>=3, …; repeatable.",
        rich_help_panel=INPUT,
    ),
]
OnError = Annotated[str, typer.Option(help="Bad rows: reject or stop.", rich_help_panel=WRITING)]
Chunk = Annotated[
    str | None,
    typer.Option(
        "--chunk",
        metavar="TOKENS",
        help="Cut texts into chunks of at most so many tokens, each a row of its own; `model`: as"
        " many as the model takes.",
        rich_help_panel=TEXT,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        help="Begin each chunk with up to so many tokens of the one before.", rich_help_panel=TEXT
    ),
]
Contextual = Annotated[
    bool,
    typer.Option(
        "--contextual",
        help="Put the field `title` and Markdown headings before each chunk, for its vector only.",
        rich_help_panel=TEXT,
    ),
]
Markdown = Annotated[
    bool | None,
    typer.Option(
        "--markdown/--no-markdown",
        help="Whether texts to be cut are Markdown; default: those of .md files.",
        show_default=False,
        rich_help_panel=TEXT,
    ),
]
Group = Annotated[
    bool,
    typer.Option("--group", help="Show each text once, by its best chunk."),
]
Context = Annotated[
    int,
    typer.Option(
        "--context",
        min=0,
        max=20,
        help="Show what stands before and after each hit; in hybrid it counts too.",
    ),
]
RecencyHalfLife = Annotated[
    float | None,
    typer.Option(
        "--recency-half-life",
        metavar="DAYS",
        help="Prefer what is recent a little; at this age half of that is lost.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace a file that is there and was not made by memworker.",
        rich_help_panel=WRITING,
    ),
]
Distance = Annotated[str, typer.Option(help="cosine or dot; for a new table.")]
Rejects = Annotated[
    Path | None,
    typer.Option(help="Where what is rejected is listed; default: beside the table."),
]
Durable = Annotated[
    bool,
    typer.Option(
        "--durable", help="Force each commit to the disk (fsync), from now on, by any program."
    ),
]
Wait = Annotated[
    float,
    typer.Option(min=0, help="Seconds to wait for another job on this table to end."),
]
Runner = Annotated[
    str,
    typer.Option(
        "--runner",
        help="Where texts are read and embedded: local, or ray, on the nodes of a cluster.",
        rich_help_panel=MODEL,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The Ray cluster: auto or HOST:PORT; default: one on this machine, for the while.",
        rich_help_panel=MODEL,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No lines about progress.", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on one line.", rich_help_panel=OUTPUT),
]

_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def template(given: str | None) -> str | None:
    r"""Read a template of the command line: ``\n``, ``\t`` and a doubled backslash are marks."""
    if given is None:
        return None
    return re.sub(r"\\[nt\\]", lambda mark: _ESCAPES[mark[0]], given)


def dialect(
    delimiter: str | None,
    quotechar: str | None,
    escapechar: str | None,
    encoding: str | None,
    no_header: bool,
) -> Dialect:
    """Say how files of text are written. Raises UsageError."""
    from memworker.ingestion import Dialect

    return Dialect(delimiter, quotechar, encoding, not no_header, escapechar)


def database(db: str, storage_option: list[str] | None) -> DatabaseGiven:
    """Return the database with its storage options. Raises UsageError."""
    from memworker.paths import database_place

    given = {}
    for pair in storage_option or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            # What stands there may be a secret.
            raise UsageError("--storage-option takes KEY=VALUE, such as aws_region=eu-central-1")
        given[key] = value
    return database_place(db, given) if given else db


def inputs_or_query(inputs: list[str] | None, sql: str | None, database: str | None) -> list[str]:
    """Return what is read: inputs, or the database of a query. Raises UsageError."""
    if database is not None and sql is None:
        raise UsageError("--from names what --sql asks; give a query, or name a file as an input")
    if database is not None and inputs:
        raise UsageError(f"--from {database} and the input {inputs[0]} are given; name one of them")
    named = [database] if database is not None else inputs
    if not named and sql is not None:
        raise UsageError("--sql asks a database; name it with --from, such as sqlite:///notes.db")
    if not named:
        raise UsageError("no input is given; name a file, a folder, a glob, or - for stdin")
    return named


@overload
def precision_of(precision: str, min_cosine: float | None) -> str | Auto: ...
@overload
def precision_of(precision: str | None, min_cosine: float | None) -> str | Auto | None: ...
def precision_of(precision: str | None, min_cosine: float | None) -> str | Auto | None:
    """Join --precision and --min-cosine. Raises UsageError where these do not go together."""
    if min_cosine is None:
        return precision
    if precision != "auto":
        raise UsageError("--min-cosine goes with --precision auto: it bounds what auto may choose")
    from memworker import Auto

    return Auto(min_cosine)


def size_of(amount: str | None) -> int | None:
    """Read the amount of --max-text-bytes; None stays. Raises UsageError."""
    from memworker.pool import parse_bytes

    try:
        return None if amount is None else parse_bytes(amount)
    except UsageError:
        raise UsageError(
            f"--max-text-bytes must be an amount such as 4MB or 512KiB, not {amount!r}"
        ) from None


def chunking_of(
    chunk: str | None, overlap: int | None, contextual: bool, markdown: bool | None
) -> Chunking | None:
    """Read --chunk and what goes with it. Raises UsageError."""
    from dataclasses import replace

    from memworker.chunking import chunking_of as read

    cut = read(chunk, overlap, contextual or None)
    if cut is None:
        if markdown is not None:
            raise UsageError("--markdown says how texts are cut; give --chunk as well")
        return None
    return replace(cut, markdown=markdown)


def pairs(items: list[str] | None, option: str) -> dict[str, str]:
    """Split repeated KEY=VALUE options."""
    found: dict[str, str] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{option} takes KEY=VALUE, not {item!r}")
        if key in found:
            raise UsageError(f"{option} names {key!r} twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found


def texts_of(
    inputs: list[str], field: list[str], *, format: str | None = None, limit: int | None = None
) -> Iterator[str]:
    """Yield the texts of the first `limit` rows of inputs, those that are refused left out."""
    from memworker.ingestion import Fields, read

    for batch in read(inputs, Fields.of(field, metadata=False), format=format, limit=limit):
        yield from batch.rows["text"].to_pylist()
