"""The `memworker` command: verbs, errors in one line, exit codes.

Exit codes: 0 done, 1 failure, 2 usage, 3 done but some rows were rejected,
130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by a terminal that was closed.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from memworker import __version__, errors
from memworker.cli import (
    embed,
    ingest,
    jobs,
    mcp,
    memory,
    models,
    options,
    search,
    serve,
    signals,
    table,
    tune,
)

_USAGE = (
    errors.UsageError,
    errors.UnknownModel,
    errors.InputNotFound,
    errors.MissingField,
    errors.FilterError,
)

app = typer.Typer(
    name="memworker",
    help="Turn texts into searchable vectors in LanceDB.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("ingest")(ingest.ingest)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("jobs")(jobs.jobs)
app.command("tune")(tune.tune)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
app.add_typer(models.app, name="models")
app.add_typer(table.app, name="table")
app.add_typer(memory.app, name="memory")


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


def run() -> NoReturn:
    """Run the command line: the console script's entry."""
    signals.install()
    # Lance warns on stderr of index partitions that stay empty; set before it is imported.
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        _run_app()
    except errors.MemworkerError as error:
        _say(str(error))
        sys.exit(2 if isinstance(error, _USAGE) else 1)
    except signals.Interrupted as interruption:
        _say("interrupted. Run the same command again to go on.")
        _leave(interruption.exit_code)
    except BrokenPipeError:
        _say("standard output was closed before all was printed; the work itself is done")
        _leave(1)
    except OSError as error:
        # What the store and the readers meet they say themselves; left are our own prints.
        _say(f"{error.strerror or error}: {error.filename or 'standard output'}")
        # What a full device did not take is in the buffer still, and would be tried again.
        _leave(1)
    sys.exit(0)


def _run_app() -> None:
    try:
        app()
    finally:
        # Now, where an error can be told, and not at the interpreter's end.
        if sys.stdout is not None:
            sys.stdout.flush()


def _leave(exit_code: int) -> NoReturn:
    """End without the interpreter's own end, which may wait for a thread that reads stdin."""
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(exit_code)


def _say(message: str) -> None:
    print(f"memworker: {options.printable(message)}", file=sys.stderr)
