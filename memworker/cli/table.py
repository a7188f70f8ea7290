"""``memworker table``: what a table holds, keeping it quick, giving it another model."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memworker.cli import options, table_care, table_show
from memworker.cli.options import Db, Json, StorageOption, TableName
from memworker.cli.output import printable
from memworker.cli.reports import print_result, size

if TYPE_CHECKING:
    from memworker.ingestion import ReembedReport
    from memworker.store import TableInfo

app = typer.Typer(
    help="Show, draw, count, optimise, verify, repair and re-embed tables.", no_args_is_help=True
)
app.command()(table_show.show)
app.command()(table_care.optimize)
app.command()(table_care.verify)
app.command()(table_care.repair)

Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="Only rows that meet FIELD=VALUE, n>=3, …; may be repeated."),
]


@app.command()
def info(
    db: Db, table: TableName, storage_option: StorageOption = None, as_json: Json = False
) -> None:
    """Show a table's model, rows, version, indices and size."""
    from memworker.store import Table

    facts = Table.open(options.database(db, storage_option), table).info()
    print_result(_readable(facts), asdict(facts), as_json=as_json)


@app.command()
def count(
    db: Db,
    table: TableName,
    storage_option: StorageOption = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Count a table's rows."""
    from memworker.store import Table, parse_where

    opened, conditions = (
        Table.open(options.database(db, storage_option), table),
        parse_where(where or []),
    )
    rows = opened.count(conditions)
    # Whatever the count is: `!=` of a field that no row has counts them all.
    note = opened.note_on(conditions)
    told = {"table": table, "rows": rows} | ({"note": note} if note else {})
    print_result(str(rows), told, as_json=as_json)
    if note:
        print(f"memworker: {printable(note)}", file=sys.stderr)


@app.command()
def durable(
    db: Db,
    table: TableName,
    storage_option: StorageOption = None,
    off: Annotated[
        bool, typer.Option("--off", help="Leave it to the system again when files reach the disk.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Force each commit to the disk before it is acknowledged, from now on, by any program.

    What the table holds is forced first. The same as --durable of `ingest` and `memory add`.
    """
    from memworker.store import Table

    Table.open(options.database(db, storage_option), table).set_durable(not off)
    promise = "may be lost with the power for half a minute" if off else "is on the disk"
    line = f"what is committed to table {table!r} from now on {promise}"
    print_result(line, {"table": table, "durable": not off}, as_json=as_json)


@app.command()
def reembed(
    db: Db,
    table: TableName,
    model: options.Model,
    storage_option: StorageOption = None,
    precision: options.Precision = "fp32",
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    memory: options.MemoryLimit = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop what an unfinished re-embedding has filled.")
    ] = False,
    wait: options.Wait = 0.0,
    quiet: options.Quiet = False,
    as_json: Json = False,
) -> None:
    """Give all rows of a table the vectors of another model, while others go on using it.

    The new vectors are gathered beside the table, then put in by one commit.
    Running the same command again goes on where a stopped one ended.
    """
    from memworker.cli import progress, signals
    from memworker.ingestion import reembed as run
    from memworker.store import Table

    rows = Table.open(options.database(db, storage_option), table).count()
    with progress.shown(rows, quiet=quiet) as observer, signals.drained() as stop:
        report = run(
            options.database(db, storage_option),
            table,
            model=model,
            precision=options.precision_of(precision, min_cosine),
            workers=workers,
            memory=memory,
            max_tokens=max_tokens,
            dim=dim,
            discard=discard,
            wait_s=wait,
            stop=stop,
            observer=observer,
        )
    print_result(f"{db} · {_reembedded(report)}", report.to_dict(), as_json=as_json)
    for note in report.notes:
        print(f"memworker: {note}", file=sys.stderr)
    if number := signals.received():
        print(f"memworker: {_left_to_do(report)}", file=sys.stderr)
        raise typer.Exit(128 + number)


def _reembedded(report: ReembedReport) -> str:
    model = f"{report.model} {report.precision} ({report.dim} dimensions)"
    head = f"{report.table}: {report.rows:,} rows"
    if report.interrupted:
        return f"{head} have the vectors of {report.model_before} still; {_work(report)}"
    if not report.switched:
        return f"{head} have the vectors of {model}; there is nothing to do"
    before = f"{report.model_before} {report.precision_before}"
    return (
        f"{head} have the vectors of {model}, not of {before} any more\n{_work(report)}\n"
        "`memworker table optimize` frees the disk space of the former vectors later"
    )


def _work(report: ReembedReport) -> str:
    known = f" ({report.filled_before:,} before)" if report.filled_before else ""
    return (
        f"{report.embedded:,} texts embedded{known} in {report.seconds:.1f} s:"
        f" {report.texts_per_second:,.0f} texts/s, {report.tokens_per_second:,.0f} tokens/s,"
        f" {report.workers} workers (start-up {report.startup_seconds:.1f} s);"
        f" writers waited {report.switch_seconds:.1f} s for the switch"
    )


def _left_to_do(report: ReembedReport) -> str:
    if report.interrupted:
        return "interrupted; the table is as it was. Run the same command again to go on."
    return "interrupted, but all was done already."


def _readable(facts: TableInfo) -> str:
    indices = [f"{i.kind} on {', '.join(i.columns)}" for i in facts.indices]
    lines = {
        "table": facts.name,
        "rows": f"{facts.rows:,}",
        "version": facts.version,
        "model": f"{facts.model} ({facts.precision}, at most {facts.max_tokens} tokens)",
        "vectors": f"{facts.dim} dimensions, {facts.distance}",
        "fingerprint": facts.fingerprint,
        "indices": "; ".join(indices) or "none",
        "fragments": facts.fragments,
        "durable": "yes, each commit is forced to the disk" if facts.durable else "no",
        "size": size(facts.bytes_on_disk),
    }
    return "\n".join(f"{label:<12} {value}" for label, value in lines.items())
