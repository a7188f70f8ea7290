"""`memworker search`: the nearest rows to a question."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memworker.cli import options
from memworker.cli.output import json_line, print_grid, printable

if TYPE_CHECKING:
    from memworker.store import Hit


def search(
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    db: options.Db,
    table: options.TableName,
    limit: Annotated[int, typer.Option(min=1, help="How many hits.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows that meet FIELD=VALUE, n>=3, …; repeatable."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Scan every row, index or not.")] = False,
    group: options.Group = False,
    model: Annotated[
        str | None,
        typer.Option(help="The table's model by its directory, where it has no catalogue name."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show the rows of a table that are nearest to a question, best first."""
    from memworker.memory import pool_like
    from memworker.store import Table, parse_where

    opened = Table.open(db, table)
    conditions = parse_where(where or [])
    with pool_like(opened, model, workers=1) as pool:
        vector = pool.embed([query], kind="query")[0]
    started = time.perf_counter()
    hits = opened.search(vector, limit=limit, where=conditions, exact=exact, group=group)
    seconds = time.perf_counter() - started
    note = "" if hits else opened.note_on(conditions)
    if as_json:
        found = [_plain(hit) for hit in hits]
        told = {"query": query, "table": table, "seconds": seconds, "hits": found}
        print(json_line(told | ({"note": note} if note else {})))
    else:
        _show(hits)
    if note:
        print(f"memworker: {printable(note)}", file=sys.stderr)


def _plain(hit: Hit) -> dict[str, Any]:
    values = asdict(hit)
    for name in ("created_at", "updated_at", "expires_at"):
        values[name] = values[name].isoformat() if values[name] else None
    if hit.parent_id is None:
        for name in ("parent_id", "chunk", "char_start", "char_end", "context"):
            del values[name]
    return values


def _show(hits: list[Hit]) -> None:
    if not hits:
        print("no hits")
        return
    print_grid({"score": {"justify": "right"}, "id": {}, "text": {}}, map(_row, hits))


def _row(hit: Hit) -> tuple[str, str, str]:
    owner = f"[{hit.user_id}] " if hit.user_id else ""
    name = hit.id if hit.parent_id is None else f"{hit.parent_id}#{hit.chunk}"
    return f"{hit.score:.3f}", printable(name)[:24], printable(owner + hit.text)[:300]
