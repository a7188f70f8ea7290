"""What the verbs about memories share: whose, in which table, made with what."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from memworker import DEFAULT_MODEL
from memworker.cli.output import json_line, printable
from memworker.errors import ScopeMissing, TableNotFound

if TYPE_CHECKING:
    from memworker import Auto
    from memworker.memory import Scope
    from memworker.paths import DatabaseGiven

DEFAULT_TABLE = "memories"

Db = Annotated[
    str,
    typer.Argument(help="The LanceDB directory, or s3://…, gs://…, az://….", show_default=False),
]
TableName = Annotated[str, typer.Option("--table", help="The table's name.")]
UserId = Annotated[str | None, typer.Option("--user-id", help="The user whose memories are meant.")]
AgentId = Annotated[str | None, typer.Option("--agent-id", help="The agent whose they are.")]
RunId = Annotated[str | None, typer.Option("--run-id", help="The run or session they belong to.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="Only memories that meet FIELD=VALUE, n>=3, …; repeatable."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A name from `memworker models list`, or a model's directory; default: the table's"
        f" own, {DEFAULT_MODEL} for a new one."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="How the linear layers are computed, or auto; default as for --model. A table that is"
        " there keeps its own with auto."
    ),
]


def making(
    db: DatabaseGiven,
    table: str,
    model: str | None,
    precision: str | Auto | None,
    max_tokens: int | None,
    dim: int | None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Say what vectors are made with: as told, as the table's own were, or by the defaults."""
    from memworker.pool import PoolOptions, is_auto, refuse_absent
    from memworker.store import Table

    given: dict[str, Any] = {"model": model, "precision": precision}
    given |= {"max_tokens": max_tokens, "dim": dim}
    there: dict[str, Any] = {"model": DEFAULT_MODEL, "precision": "fp32", "max_tokens": None}
    if model is None or is_auto(precision):
        with suppress(TableNotFound):
            space = Table.open(db, table).space
            if is_auto(precision):
                auto = PoolOptions(model or space.model, "auto")
                given["precision"] = auto.for_table(space.model, space.precision).precision
            if model is None:
                if precision is None:
                    refuse_absent(space.model, space.model, space.precision)
                there = {"model": space.model, "precision": space.precision}
                there |= {"max_tokens": space.max_tokens or None, "dim": space.dim}
    told = {name: value for name, value in given.items() if value is not None}
    return there | told | {"workers": workers}


def scope_of(user_id: str | None, agent_id: str | None, run_id: str | None) -> Scope:
    """Return whose memories are meant. Raises ScopeMissing, in the words of a command line."""
    from memworker.memory import Scope

    if user_id is None and agent_id is None and run_id is None:
        raise ScopeMissing(
            "whose memories? Give --user-id, --agent-id or --run-id, such as --user-id alice"
        )
    return Scope.of(user_id, agent_id, run_id)


def filters_of(
    user_id: str | None, agent_id: str | None, run_id: str | None, where: list[str] | None
) -> dict[str, Any]:
    """Return the filters of a search or a list. Raises ScopeMissing, FilterError."""
    from memworker.store import parse_where

    named: dict[str, Any] = dict(scope_of(user_id, agent_id, run_id).named())
    return named | ({"AND": [parse_where(where)]} if where else {})


def print_json(result: dict[str, Any], file: TextIO | None = None) -> None:
    """Print one JSON object on one line, to stdout unless told otherwise."""
    print(json_line(result), file=file, flush=True)


def say(message: str) -> None:
    """Print one line to stderr."""
    print(f"memworker: {printable(message)}", file=sys.stderr)
