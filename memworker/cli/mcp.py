"""`memworker mcp`: memories as tools of the Model Context Protocol, over stdin and stdout."""

from __future__ import annotations

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


def mcp(
    db: Db,
    user_id: UserId = None,
    agent_id: AgentId = None,
    run_id: RunId = None,
    table: TableName = DEFAULT_TABLE,
    model: Model = None,
    precision: Precision = None,
    min_cosine: options.MinCosine = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
) -> None:
    """Serve memories to an MCP client, which starts this command and talks to it by stdin.

    The ids given here are those of every call that names none. Several such
    servers may share one database.
    """
    try:
        from memworker.integrations.mcp import MemoryServer, run
    except ImportError as error:
        raise UsageError(str(error)) from error

    tier = options.precision_of(precision, min_cosine)

    def open_memory() -> AsyncMemory:
        from memworker import AsyncMemory

        made = making(db, table, model, tier, max_tokens, dim, workers)
        return AsyncMemory(db, table=table, **made)

    given = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    run(MemoryServer(open_memory, {name: value for name, value in given.items() if value}))
