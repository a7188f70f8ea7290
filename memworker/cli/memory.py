"""``memworker memory``: memories of agents, added, found, listed, deleted."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from memworker.cli import memory_files, options
from memworker.cli.memory_items import Told, batched, metadata_of, read_items
from memworker.cli.memory_options import (
    DEFAULT_TABLE,
    AgentId,
    Db,
    Model,
    Precision,
    RunId,
    TableName,
    UserId,
    Where,
    filters_of,
    making,
    print_json,
    say,
    scope_of,
)
from memworker.cli.output import print_grid, printable
from memworker.errors import MemoryNotFound, UsageError

app = typer.Typer(help="Add, find, list and delete memories of agents.", no_args_is_help=True)


@app.command()
def add(
    db: Db,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="What to remember; - reads standard input, a memory a line."),
    ] = None,
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE or a JSON object; repeatable.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(help="When they shall expire, such as 2026-01-31T12:00:00Z.")
    ] = None,
    on_duplicate: Annotated[
        str, typer.Option(help="The same text is there already: skip, update or allow.")
    ] = "skip",
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl", help="Lines are JSON: {text, metadata} or {role, content}, or a string."
        ),
    ] = False,
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    model: Model = None,
    precision: Precision = None,
    min_cosine: options.MinCosine = None,
    workers: options.Workers = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    durable: options.Durable = False,
    as_json: options.Json = False,
) -> None:
    """Remember texts: embed them and add them, each once for the same scope."""
    from memworker import Memory
    from memworker.memory import metadata_json, moment, policy

    # What is wrong with the command is told before a worker starts.
    scope_of(user_id, agent_id, run_id)
    shared = metadata_of(metadata or [])
    metadata_json(shared)
    terms: dict[str, Any] = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    terms |= {"expires_at": moment(expires_at), "on_duplicate": policy(on_duplicate)}
    if not texts:
        raise UsageError("no text was given; write it behind the database, or - for stdin")
    told = Told(as_json)
    tier = options.precision_of(precision, min_cosine)
    place = options.database(db, storage_option)
    made = making(place, table, model, tier, max_tokens, dim, workers)
    with Memory(place, table=table, durable=durable, **made) as to:
        for batch in batched(read_items(texts, shared, jsonl=jsonl)):
            good = [item for item in batch if item.flaw is None]
            own = [item.metadata for item in good]
            done = to.add_batch([item.content for item in good], metadata=own, **terms)
            told.tell(batch, iter(done["results"]))
    told.end(table)


@app.command()
def search(
    db: Db,
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, help="How many memories.")] = 10,
    threshold: Annotated[
        float | None, typer.Option(help="Leave out what scores lower.", show_default=False)
    ] = None,
    mode: Annotated[str, typer.Option(help="vector (by meaning), text or hybrid.")] = "vector",
    context: options.Context = 0,
    recency_half_life: options.RecencyHalfLife = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Have a cross-encoder order the best 50: its folder, or its name on the hub.",
            show_default=False,
        ),
    ] = None,
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    model: Model = None,
    as_json: options.Json = False,
) -> None:
    """Find the memories that answer a question best."""
    from memworker import Memory, Reranker

    filters = filters_of(user_id, agent_id, run_id, where)
    with ExitStack() as opened:
        reranker = opened.enter_context(Reranker(rerank, workers=1)) if rerank else None
        at = options.database(db, storage_option)
        memory = opened.enter_context(Memory.open(at, table=table, model=model, workers=1))
        found = memory.search(
            query,
            filters=filters,
            limit=limit,
            threshold=threshold,
            mode=mode,  # type: ignore[arg-type]
            context=context,
            recency_half_life=recency_half_life,
            rerank=reranker,
        )
    if as_json:
        print_json({"query": query, "table": table, **found})
    else:
        _show(found["results"], "score", "no memories found")
    _say_note(found)


@app.command("list")
def list_(
    db: Db,
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, help="How many memories.")] = 100,
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    as_json: options.Json = False,
) -> None:
    """List memories, newest first."""
    from memworker import Memory

    filters = filters_of(user_id, agent_id, run_id, where)
    with Memory.open(options.database(db, storage_option), table=table) as memory:
        found = memory.get_all(filters=filters, limit=limit)
    if as_json:
        print_json({"table": table, **found})
    else:
        _show(found["results"], "created_at", "no memories")
    _say_note(found)


@app.command()
def delete(
    db: Db,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Ids, as list and search show them."),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="All memories that carry the ids given by --user-id, ….")
    ] = False,
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="Leave no history either; it cannot be undone.")
    ] = False,
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    as_json: options.Json = False,
) -> None:
    """Delete memories; their history stays, unless --erase."""
    from memworker import Memory

    if bool(ids) == all_ or (ids and (user_id or agent_id or run_id)):
        raise UsageError(
            "give the ids of memories, or --all with --user-id, --agent-id or --run-id"
        )
    if all_:
        scope_of(user_id, agent_id, run_id)
    with Memory.open(options.database(db, storage_option), table=table) as memory:
        if all_:
            whose = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
            deleted, flaws = memory.delete_all(**whose, erase=erase)["deleted"], []
        else:
            unique = list(dict.fromkeys(ids or []))
            done = memory.delete_batch(unique, erase=erase)["results"]
            flaws = [record["error"] for record in done if "error" in record]
            deleted = len(done) - len(flaws)
    if as_json:
        print_json({"table": table, "deleted": deleted, "erased": erase, "errors": flaws})
    else:
        print(f"{deleted:,} {'erased' if erase else 'deleted'}")
    for flaw in flaws:
        say(flaw)
    if flaws:
        raise typer.Exit(3 if deleted else 1)


@app.command()
def history(
    db: Db,
    memory_id: Annotated[
        str,
        typer.Argument(metavar="ID", help="A memory's id, also a deleted one's."),
    ],
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    as_json: options.Json = False,
) -> None:
    """Show what became of a memory, oldest first."""
    from memworker import Memory

    with Memory.open(options.database(db, storage_option), table=table) as memory:
        events = memory.history(memory_id)
    if not events:
        raise MemoryNotFound(f"nothing is known of {memory_id!r}: it never was, or it was erased")
    if as_json:
        print_json({"table": table, "memory_id": memory_id, "events": events})
        return
    for event in events:
        now = event["new_memory"] if event["new_memory"] is not None else event["old_memory"]
        print(f"{event['updated_at']}  {event['event']:<6}  {printable(now)}")


# After the others, as `--help` lists them in this order.
app.command("export")(memory_files.export)
app.command("import")(memory_files.import_)


def _say_note(found: dict[str, Any]) -> None:
    """Say on stderr what there is to say about an answer without results."""
    if "note" in found:
        say(found["note"])


def _show(records: list[dict[str, Any]], first: str, none: str) -> None:
    if not records:
        print(none)
        return
    columns = {first: {"no_wrap": True}, "id": {"no_wrap": True}, "memory": {}}
    print_grid(columns, (row for record in records for row in _rows(record, first)))


def _rows(record: dict[str, Any], first: str) -> list[tuple[str, str, str]]:
    """Give a memory's line, between those of what stands beside it."""
    before, after = (
        [_row(one, "") for one in record.get(side, ())] for side in ("before", "after")
    )
    return [*before, _row(record, record[first]), *after]


def _row(record: dict[str, Any], first: float | str) -> tuple[str, str, str]:
    shown = f"{first:.3f}" if isinstance(first, float) else first[:19]
    return shown, printable(record["id"]), printable(record["memory"])[:300]
