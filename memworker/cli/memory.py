"""``memworker memory``: memories of agents, added, found, listed, deleted."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memworker.cli import options
from memworker.errors import MemoryNotFound, TableNotFound, UnknownModel, UsageError

if TYPE_CHECKING:
    from memworker.memory.group import Delete, EraseOne, Sweep
    from memworker.memory.scope import Scope
    from memworker.store import Table

app = typer.Typer(help="Add, find, list and delete memories of agents.", no_args_is_help=True)

DEFAULT_TABLE = "memories"
DEFAULT_MODEL = "all-MiniLM-L6-v2"

Db = Annotated[str, typer.Argument(help="The LanceDB directory.", show_default=False)]
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
    str | None, typer.Option(help="How the linear layers are computed; default as for --model.")
]

# What of a stream is embedded and committed together.
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to remember, or why it cannot be; `where` says which it was."""

    where: str
    content: Any = None
    metadata: dict[str, Any] | None = None
    flaw: str | None = None


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
    model: Model = None,
    precision: Precision = None,
    workers: options.Workers = None,
    max_tokens: options.MaxTokens = None,
    as_json: options.Json = False,
) -> None:
    """Remember texts: embed them and add them, each once for the same scope."""
    from memworker import Memory
    from memworker.memory.core import policy
    from memworker.memory.drafts import metadata_json, moment
    from memworker.memory.scope import Scope

    # What is wrong with the command is told before a worker starts.
    Scope.of(user_id, agent_id, run_id)
    shared = _metadata(metadata or [])
    metadata_json(shared)
    terms: dict[str, Any] = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    terms |= {"expires_at": moment(expires_at), "on_duplicate": policy(on_duplicate)}
    if not texts:
        raise UsageError("no text was given; write it behind the database, or - for stdin")
    told = _Told(as_json)
    with Memory(db, table=table, **making(db, table, model, precision, max_tokens, workers)) as to:
        for batch in _batched(_items(texts, shared, jsonl)):
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
    table: TableName = DEFAULT_TABLE,
    model: Model = None,
    as_json: options.Json = False,
) -> None:
    """Find the memories that answer a question best."""
    from memworker.memory import reads
    from memworker.store import Table

    filters = _filters(user_id, agent_id, run_id, where)
    checked = reads.checked_search(query, filters, limit, mode)
    opened = Table.open(db, table)
    vector = None if mode == "text" else _query_vector(opened, query, model)
    found = reads.search(opened, vector, query, checked, limit, threshold, mode)  # type: ignore[arg-type]
    if as_json:
        _print_json({"query": query, "table": table, **found})
    else:
        _show(found["results"], "score", "no memories found")


@app.command("list")
def list_(
    db: Db,
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, help="How many memories.")] = 100,
    table: TableName = DEFAULT_TABLE,
    as_json: options.Json = False,
) -> None:
    """List memories, newest first."""
    from memworker.memory import reads
    from memworker.store import Table

    filters = _filters(user_id, agent_id, run_id, where)
    found = reads.get_all(Table.open(db, table), filters, limit)
    if as_json:
        _print_json({"table": table, **found})
    else:
        _show(found["results"], "created_at", "no memories")


@app.command()
def delete(
    db: Db,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
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
    as_json: options.Json = False,
) -> None:
    """Delete memories; their history stays, unless --erase."""
    from memworker.memory.scope import Scope
    from memworker.store import Table

    if bool(ids) == all_ or (ids and (user_id or agent_id or run_id)):
        raise UsageError(
            "give the ids of memories, or --all with --user-id, --agent-id or --run-id"
        )
    scope = Scope.of(user_id, agent_id, run_id) if all_ else Scope()
    outcomes = _carried_out(Table.open(db, table), _operations(ids or [], scope, erase))
    flaws = [outcome for outcome in outcomes if isinstance(outcome, MemoryNotFound)]
    for outcome in outcomes:
        if isinstance(outcome, Exception) and outcome not in flaws:
            raise outcome
    deleted = outcomes[0] if all_ else len(outcomes) - len(flaws)
    if as_json:
        refused = [str(flaw) for flaw in flaws]
        _print_json({"table": table, "deleted": deleted, "erased": erase, "errors": refused})
    else:
        print(f"{deleted:,} {'erased' if erase else 'deleted'}")
    for flaw in flaws:
        _say(str(flaw))
    if flaws:
        raise typer.Exit(3 if deleted else 1)


@app.command()
def history(
    db: Db,
    memory_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    table: TableName = DEFAULT_TABLE,
    as_json: options.Json = False,
) -> None:
    """Show what became of a memory, oldest first."""
    from memworker.memory import reads
    from memworker.store import Table

    events = reads.events(Table.open(db, table), memory_id)
    if not events:
        raise MemoryNotFound(f"nothing is known of {memory_id!r}: it never was, or it was erased")
    if as_json:
        _print_json({"table": table, "memory_id": memory_id, "events": events})
        return
    for event in events:
        now = event["new_memory"] if event["new_memory"] is not None else event["old_memory"]
        print(f"{event['updated_at']}  {event['event']:<6}  {options.printable(now)}")


def making(
    db: str,
    table: str,
    model: str | None,
    precision: str | None,
    max_tokens: int | None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Say what vectors are made with: as told, as the table's own were, or by the defaults."""
    from memworker.store import Table

    given: dict[str, Any] = {"model": model, "precision": precision, "max_tokens": max_tokens}
    there: dict[str, Any] = {"model": DEFAULT_MODEL, "precision": "fp32", "max_tokens": None}
    if model is None:
        try:
            space = Table.open(db, table).space
        except TableNotFound:
            pass
        else:
            there = {"model": space.model, "precision": space.precision}
            there["max_tokens"] = space.max_tokens or None
    told = {name: value for name, value in given.items() if value is not None}
    return there | told | {"workers": workers}


class _Told:
    """What became of the items so far: printed as they come, or kept for one JSON object."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._results: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def tell(self, batch: list[Item], done: Iterator[dict[str, Any]]) -> None:
        """Tell of a batch; `done` are the results of its items that have no flaw, in order."""
        for item in batch:
            result = next(done) if item.flaw is None else {"error": item.flaw}
            self._counts[result.get("event", "error")] += 1
            if "error" in result:
                _say(f"{item.where}: {result['error']}")
                result = {"error": result["error"], "at": item.where}
            elif not self._as_json:
                text = options.printable(result["memory"])
                print(f"{result['event']:<6}  {result['id']}  {text}", flush=True)
            if self._as_json:
                self._results.append(result)

    def end(self, table: str) -> None:
        """Print the JSON object; leave with 3 if something was refused."""
        names = {"added": "ADD", "updated": "UPDATE", "unchanged": "NONE", "refused": "error"}
        counts = {name: self._counts[event] for name, event in names.items()}
        if self._as_json:
            _print_json({"table": table, **counts, "results": self._results})
        if counts["refused"]:
            raise typer.Exit(3)


def _items(texts: Iterable[str], metadata: dict[str, Any] | None, jsonl: bool) -> Iterator[Item]:
    for number, text in enumerate(texts, 1):
        if text != "-":
            yield Item(f"text {number}", text, metadata)
            continue
        for line_number, line in enumerate(sys.stdin.buffer, 1):
            if line.strip():
                yield _item(f"line {line_number}", line, metadata, jsonl)


def _item(where: str, line: bytes, metadata: dict[str, Any] | None, jsonl: bool) -> Item:
    try:
        text = line.decode().rstrip("\r\n")
        content = json.loads(text) if jsonl else text
    except ValueError as error:
        return Item(where, flaw=f"it is not valid {'JSON' if jsonl else 'UTF-8'}: {error}")
    if not isinstance(content, dict):
        return Item(where, content, metadata)
    own = content.get("metadata")
    if own is not None:
        if not isinstance(own, dict):
            return Item(where, flaw=f"metadata is not an object: {own!r:.80}")
        metadata = (metadata or {}) | own
    if "role" in content:
        return Item(where, content, metadata)
    if "text" not in content:
        return Item(where, flaw="it has no field 'text'; write {\"text\": …}")
    return Item(where, content["text"], metadata)


def _batched(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(islice(items, _BATCH)):
        yield batch


def _metadata(items: list[str]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for item in items:
        if item.lstrip().startswith("{"):
            try:
                found |= json.loads(item)
            except ValueError as error:
                raise UsageError(f"--metadata {item!r} is not valid JSON: {error}") from None
        else:
            found |= {k: _scalar(v) for k, v in options.pairs([item], "--metadata").items()}
    return found or None


def _scalar(text: str) -> Any:
    """Read a value as --where does, so that what was written is found by the same words."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    odd = isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value))
    return text if odd else value


def _filters(
    user_id: str | None, agent_id: str | None, run_id: str | None, where: list[str] | None
) -> dict[str, Any]:
    from memworker.memory.scope import Scope
    from memworker.store import parse_where

    filters: dict[str, Any] = dict(Scope.of(user_id, agent_id, run_id).named())
    return filters | ({"AND": [parse_where(where)]} if where else {})


def _query_vector(table: Table, query: str, model: str | None) -> Any:
    from memworker.ingest.job import vector_space
    from memworker.pool.pool import EmbeddingPool, resolve

    space = table.space
    try:
        resolved = resolve(
            model or space.model, precision=space.precision, max_tokens=space.max_tokens or None
        )
    except UnknownModel as error:
        raise UnknownModel(
            f"table {table.name!r} was made with the model {space.model!r}, which is not in the"
            " catalogue; give its directory with --model DIR"
        ) from error
    with EmbeddingPool(resolved, workers=1) as pool:
        space.must_equal(vector_space(pool.identity, space.distance), table.name)
        return pool.embed([query], kind="query")[0]


def _operations(ids: list[str], scope: Scope, erase: bool) -> list[Delete | EraseOne | Sweep]:
    from memworker.memory.group import Delete, EraseOne, Sweep
    from memworker.memory.reads import checked_id

    if not ids:
        return [Sweep(scope.named(), erase)]
    one = EraseOne if erase else Delete
    return [one(checked_id(memory_id)) for memory_id in dict.fromkeys(ids)]


def _carried_out(table: Table, operations: list[Any]) -> list[Any]:
    """Commit operations without a model, so without a worker; an outcome or error each."""
    from memworker.memory.writer import Writer

    writer = Writer(table, lambda: None)
    try:
        futures = [writer.submit(operation) for operation in operations]
    finally:
        writer.close()
    return [future.exception() or future.result() for future in futures]


def _show(records: list[dict[str, Any]], first: str, none: str) -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for name in (first, "id", "memory"):
        grid.add_column(name, no_wrap=name != "memory")
    for record in records:
        value = record[first]
        shown = f"{value:.3f}" if isinstance(value, float) else value[:19]
        grid.add_row(
            *(Text(shown), Text(options.printable(record["id"])), Text(_shortened(record)))
        )
    Console().print(grid if records else none)


def _shortened(record: dict[str, Any]) -> str:
    return options.printable(record["memory"])[:300]


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, ensure_ascii=False), flush=True)


def _say(message: str) -> None:
    print(f"memworker: {options.printable(message)}", file=sys.stderr)
