"""`memworker table show`: what a table holds, in figures or as a page with a map."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from memworker.cli import options
from memworker.cli.options import Db, Json, StorageOption, TableName
from memworker.cli.output import printable
from memworker.cli.reports import print_result
from memworker.errors import UsageError

if TYPE_CHECKING:
    from memworker.overview import Overview

_NAMES = 5


def show(
    db: Db,
    table: TableName,
    storage_option: StorageOption = None,
    where: options.Where = None,
    plot: Annotated[
        str | None,
        typer.Option(help="Draw it: an HTML file to write.", rich_help_panel=options.OUTPUT),
    ] = None,
    sample: Annotated[
        int, typer.Option(help="Rows on the page's map.", rich_help_panel=options.OUTPUT)
    ] = 1000,
    no_texts: Annotated[
        bool,
        typer.Option(
            "--no-texts",
            help="Keep texts, ids and metadata out of the page.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: Json = False,
) -> None:
    """Count a table's rows by scope and day and by the length of their texts, and draw them.

    The page of --plot is one file without anything from outside. It holds texts of the table.
    """
    from memworker.overview import show_table
    from memworker.store import parse_where

    if no_texts and plot is None:
        raise UsageError("--no-texts is for the page that --plot writes; name one, or leave it out")
    found = show_table(
        options.database(db, storage_option),
        table,
        plot=plot,
        where=parse_where(where or []),
        sample=sample,
        texts=not no_texts,
        overwrite=overwrite,
    )
    print_result(_readable(found), found.to_dict(), as_json=as_json)
    if found.note:
        print(f"memworker: {printable(found.note)}", file=sys.stderr)


def _readable(found: Overview) -> str:
    hidden = f" ({found.hidden:,} expired or superseded are left out)" if found.hidden else ""
    lines = {"table": printable(found.table), "rows": f"{found.rows:,}{hidden}"}
    if found.counted < found.rows:
        lines["counted"] = f"the first {found.counted:,}"
    if found.texts is not None:
        lines["texts"] = f"{found.texts:,}, of which the rows are chunks"
    for name, share in found.scopes.items():
        named = [f"{printable(value)} {rows:,}" for value, rows in share.named[:_NAMES]]
        more = share.values - len(named)
        named += [f"{'' if share.exact else 'at least '}{more:,} more"] if more > 0 else []
        named += [f"none {share.without:,}"] if share.without else []
        lines[f"{name.removesuffix('_id')}s"] = ", ".join(named)
    if found.days.starts:
        first, last = found.days.starts[0], found.days.starts[-1]
        lines["made"] = first if first == last else f"{first} to {last}, by {found.days.unit}"
    if (lengths := found.lengths) is not None:
        lines["characters"] = (
            f"{lengths.shortest:,} to {lengths.longest:,}, median {lengths.median:,},"
            f" 95 % up to {lengths.p95:,}"
        )
    if found.dropped:
        lines["without"] = f"{', '.join(found.dropped)}: another program has dropped that"
    if found.plot is not None:
        lines["page"] = f"{printable(found.plot)} (a map of {found.sampled:,} rows)"
    return "\n".join(f"{label:<12} {value}" for label, value in lines.items())
