"""`memworker mcp`: memories as tools of the Model Context Protocol, by stdin or over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memworker.cli import options
from memworker.cli.memory_options import (
    DEFAULT_TABLE,
    AgentId,
    Db,
    Model,
    Precision,
    RunId,
    TableName,
    UserId,
    making,
)
from memworker.errors import UsageError

if TYPE_CHECKING:
    from memworker import AsyncMemory

_HOST, _PORT = "127.0.0.1", 8001


def mcp(
    db: Db,
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    table: TableName = DEFAULT_TABLE,
    storage_option: options.StorageOption = None,
    model: Model = None,
    precision: Precision = None,
    min_cosine: options.MinCosine = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve over HTTP, at /mcp, instead of stdin and stdout.")
    ] = False,
    host: Annotated[str, typer.Option(help="With --http: the address to listen on.")] = _HOST,
    port: Annotated[int, typer.Option(help="With --http: the port; 0 for any free one.")] = _PORT,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="With --http: a file with the key to send; else MEMWORKER_API_KEY."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="With --http: a name that clients reach the server by; repeatable."),
    ] = None,
) -> None:
    """Serve memories to an MCP client, which starts this command and talks to it by stdin.

    The ids given here are those of every call that names none. Several such
    servers may share one database.
    """
    try:
        from memworker.integrations import mcp_serving
        from memworker.integrations.mcp import MemoryServer
    except ImportError as error:
        raise UsageError(str(error)) from error

    if not http and (host, port, api_key_file, allowed_host) != (_HOST, _PORT, None, None):
        raise UsageError(
            "--host, --port, --api-key-file and --allowed-host are of a server over HTTP: give"
            " --http too, or leave them out"
        )
    tier = options.precision_of(precision, min_cosine)

    def open_memory() -> AsyncMemory:
        from memworker import AsyncMemory

        place = options.database(db, storage_option)
        made = making(place, table, model, tier, max_tokens, dim, workers)
        return AsyncMemory(place, table=table, **made)

    given = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    server = MemoryServer(open_memory, {name: value for name, value in given.items() if value})
    if not http:
        mcp_serving.run(server)
    from memworker.serve import KEY_VARIABLE, ServeOptions, read_key

    key = read_key(api_key_file) if api_key_file else os.environ.get(KEY_VARIABLE)
    told = ServeOptions(
        host=host, port=port, key=key or None, allowed_hosts=tuple(allowed_host or ())
    )
    mcp_serving.run_http(
        server,
        mcp_serving.listen(host, port),
        key=told.key,
        hosts=told.accepted_hosts,
        on_listening=lambda at: print(f"memworker: MCP on {at}", file=sys.stderr, flush=True),
    )
