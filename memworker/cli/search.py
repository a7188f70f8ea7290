"""`memworker search`: the nearest rows to a question."""

from __future__ import annotations

import csv
import io
import sys
import time
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memworker.cli import options
from memworker.cli.output import json_line, print_grid, printable
from memworker.errors import UsageError
from memworker.values import checked_choice

if TYPE_CHECKING:
    from memworker.store import Hit, Table


def search(
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    *,
    db: options.TheDb,
    table: options.TheTable,
    storage_option: options.StorageOption = None,
    mode: Annotated[
        str,
        typer.Option(
            help="vector finds what means the same, text the same words, hybrid both.",
            rich_help_panel=options.INPUT,
        ),
    ] = "vector",
    limit: Annotated[
        int, typer.Option(min=1, help="How many hits.", rich_help_panel=options.INPUT)
    ] = 10,
    where: options.Where = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Scan every row, index or not.", rich_help_panel=options.INPUT
        ),
    ] = False,
    group: options.Group = False,
    context: options.Context = 0,
    recency_half_life: options.RecencyHalfLife = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The table's model by its directory, where it has no catalogue name.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="table, jsonl or csv.", rich_help_panel=options.OUTPUT)
    ] = "table",
    as_json: options.Json = False,
) -> None:
    """Show the rows of a table that are nearest to a question, best first."""
    from memworker.store import Table, parse_where

    checked_choice("--mode", mode, _MODES)
    checked_choice("--format", format, _SHOWN_AS)
    if as_json and format != "table":
        raise UsageError(f"--json and --format {format} are given; name one of them")
    if exact and mode != "vector":
        raise UsageError(f"--exact scans the vectors, and --mode {mode} is given; leave it out")
    if not query.strip():
        raise UsageError("the question is empty; say what to look for, or list rows with export")
    opened = Table.open(options.database(db, storage_option), table)
    conditions = parse_where(where or [])
    asked = {"limit": limit, "where": conditions, "group": group}
    asked |= {"context": context, "recency_half_life": recency_half_life}
    hits, seconds = _found(opened, query, mode, model, asked | ({"exact": True} if exact else {}))
    note = "" if hits else opened.note_on(conditions)
    if as_json:
        found = [_plain(hit) for hit in hits]
        told = {"query": query, "table": table, "seconds": seconds, "hits": found}
        print(json_line(told | ({"note": note} if note else {})))
    else:
        _SHOWN_AS[format](hits)
    if note:
        print(f"memworker: {printable(note)}", file=sys.stderr)


def _found(
    table: Table, query: str, mode: str, model: str | None, asked: dict[str, Any]
) -> tuple[list[Hit], float]:
    """Search, and say how many seconds that took once the question was embedded."""
    from memworker.memory import pool_like

    vector: Any = None
    if mode != "text":
        with pool_like(table, model, workers=1) as pool:
            vector = pool.embed([query], kind="query")[0]
    started = time.perf_counter()
    if mode == "text":
        hits = table.search_text(query, **asked)
    elif mode == "hybrid":
        hits = table.search_hybrid(query, vector, **asked)
    else:
        hits = table.search(vector, **asked)
    return hits, time.perf_counter() - started


def _plain(hit: Hit) -> dict[str, Any]:
    values = asdict(hit)
    for name in ("created_at", "updated_at", "expires_at"):
        values[name] = values[name].isoformat() if values[name] else None
    if hit.parent_id is None:
        for name in ("parent_id", "chunk", "char_start", "char_end", "context"):
            del values[name]
    for side in ("before", "after"):
        del values[side]
        if hit.before or hit.after:
            beside = [_plain(one) for one in getattr(hit, side)]
            values[side] = [{k: v for k, v in one.items() if k != "score"} for one in beside]
    return values


def _show(hits: list[Hit]) -> None:
    if not hits:
        print("no hits")
        return
    rows = [row for hit in hits for row in _rows(hit)]
    print_grid({"score": {"justify": "right"}, "id": {}, "text": {}}, rows)


def _lines(hits: list[Hit]) -> None:
    for hit in hits:
        print(json_line(_plain(hit)))


def _cells(hits: list[Hit]) -> None:
    text = io.StringIO(newline="")
    rows = [_plain(hit) for hit in hits]
    beside = any(hit.before or hit.after for hit in hits)
    names = [each.name for each in fields(_hit_type())]
    names = [name for name in names if beside or name not in ("before", "after")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        found = (row.get(name) for name in names)
        writer.writerow(
            json_line(each) if isinstance(each, dict | list) else each for each in found
        )
    print(text.getvalue(), end="")


def _hit_type() -> type[Hit]:
    from memworker.store import Hit

    return Hit


def _rows(hit: Hit) -> list[tuple[str, str, str]]:
    """Give a hit's line, between those of what stands beside it."""
    before, after = ([("", *_row(one)[1:]) for one in side] for side in (hit.before, hit.after))
    return [*before, _row(hit), *after]


def _row(hit: Hit) -> tuple[str, str, str]:
    owner = f"[{hit.user_id}] " if hit.user_id else ""
    name = hit.id if hit.parent_id is None else f"{hit.parent_id}#{hit.chunk}"
    return f"{hit.score:.3f}", printable(name)[:24], printable(owner + hit.text)[:300]


_MODES = ("vector", "text", "hybrid")
_SHOWN_AS = {"table": _show, "jsonl": _lines, "csv": _cells}
