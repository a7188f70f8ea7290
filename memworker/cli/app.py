"""The verbs of the `memworker` command, joined."""

from __future__ import annotations

from typing import Annotated

import typer

from memworker import __version__
from memworker.cli import (
    doctor,
    embed,
    export,
    ingest,
    jobs,
    mcp,
    memory,
    models,
    search,
    serve,
    sync,
    table,
    tune,
)
from memworker.cli.groups import group_options

app = typer.Typer(
    name="memworker",
    help="Turn texts into searchable vectors in LanceDB.",
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("ingest")(ingest.ingest)
app.command("sync")(sync.sync)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("export")(export.export)
app.command("jobs")(jobs.jobs)
app.command("tune")(tune.tune)
app.command("doctor")(doctor.doctor)
app.command("serve", context_settings=serve.CONTEXT)(serve.serve)
app.command("mcp")(mcp.mcp)
app.add_typer(models.app, name="models")
app.add_typer(table.app, name="table")
app.add_typer(memory.app, name="memory")
group_options(app)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Turn texts into searchable vectors in LanceDB."""
    if version:
        print(f"memworker {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
