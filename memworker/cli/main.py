"""The `memworker` command: verbs, errors in one line, exit codes.

Exit codes: 0 done, 1 failure, 2 usage, 3 done but some rows were rejected,
130 interrupted by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from memworker import __version__, errors
from memworker.cli import embed, ingest, models, search, table

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
app.add_typer(models.app, name="models")
app.add_typer(table.app, name="table")


class Interrupted(BaseException):
    """A signal asked the command to end; not an Exception, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except errors.MemworkerError as error:
        _say(str(error))
        sys.exit(2 if isinstance(error, _USAGE) else 1)
    except Interrupted as interruption:
        _say("interrupted; what was embedded is committed. Run the same command again to go on.")
        sys.exit(interruption.exit_code)
    except OSError as error:
        _say(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        sys.exit(1)
    sys.exit(0)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def _say(message: str) -> None:
    print(f"memworker: {' '.join(message.split())}", file=sys.stderr)
