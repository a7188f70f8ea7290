"""The `memworker` command: errors in one line, exit codes.

Exit codes: 0 done, 1 failure, 2 usage, 3 done but some rows were rejected,
130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by a terminal that was closed.

The verbs, and with them most libraries, are imported where their failing can be told.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any, NoReturn

from memworker import diagnosis, errors
from memworker.cli import signals
from memworker.cli.output import name_standard_output, printable

_USAGE = (
    errors.UsageError,
    errors.UnknownModel,
    errors.InputNotFound,
    errors.MissingField,
    errors.FilterError,
)


# What these modules have to tell is for whoever waits at a terminal.
_TELLING = (
    "memworker.pool.choice",
    "memworker.models.build",
    "memworker.models.foreign_build",
)


def run() -> NoReturn:
    """Run the command line: the console script's entry."""
    try:
        signals.install()
        _prepare()
        _run_app()
    except errors.MemworkerError as error:
        _say(str(error))
        sys.exit(2 if isinstance(error, _USAGE) else 1)
    except signals.Interrupted as interruption:
        refusal = _refused_threads()
        _say(refusal or "interrupted. Run the same command again to go on.")
        _leave(1 if refusal else interruption.exit_code)
    except BrokenPipeError:
        _say("standard output was closed before all was printed; the work itself is done")
        _leave(1)
    except Exception as error:
        if not diagnosis.refused_by_system(error):
            raise
        _say(diagnosis.told(error))
        # What a full device did not take is in the buffer still, and would be tried again.
        _leave(1)
    sys.exit(0)


def _prepare() -> None:
    name_standard_output()
    # Lance warns on stderr of index partitions that stay empty; set before it is imported.
    os.environ.setdefault("LANCEDB_LOG", "error")
    # Arrow's own heap keeps what was freed: an ingest's parent held 30 to 40 MB more with it.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # The verbs say themselves what is to say of an answer without results.
    logging.getLogger("memworker.store.fieldnotes").disabled = True
    for name in _TELLING:
        telling = logging.getLogger(name)
        telling.addHandler(_TellingLines())
        telling.setLevel(logging.INFO)


def _run_app() -> None:
    try:
        import typer

        from memworker.cli.app import app

        # BadParameter is the one of typer's errors of usage with a public name; all say what
        # to do in a line, and typer itself would draw a box around it.
        usage: Any = typer.BadParameter.__base__
        try:
            code = app(standalone_mode=False)
        except usage as error:
            # Without one of its verbs a command has printed its help, and says no more.
            if said := error.format_message():
                _say(_usage_told(said, error.ctx))
            sys.exit(2)
        except typer.Abort:
            _say("left without an answer; nothing was done")
            sys.exit(1)
        if code:
            sys.exit(code)
    finally:
        # Now, where an error can be told, and not at the interpreter's end.
        if sys.stdout is not None:
            sys.stdout.flush()


def _usage_told(said: str, context: Any) -> str:
    """Say what is wrong with what was typed, and where it is written how it goes."""
    verb = context.command_path if context is not None else "memworker"
    said = said if said.endswith(("?", ".")) else f"{said}."
    return f"{said} `{verb} --help` shows what there is."


def _refused_threads() -> str:
    """Say so if it was numpy that interrupted us: so it answers if it may not start its threads."""
    if "numpy" in sys.modules:  # an import that was interrupted leaves nothing there
        return ""
    try:
        threading.Thread(target=int).start()
    except RuntimeError as error:
        return diagnosis.told(error)
    return ""


def _leave(exit_code: int) -> NoReturn:
    """End without the interpreter's own end, which may wait for a thread that reads stdin."""
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(exit_code)


class _TellingLines(logging.Handler):
    """Says what was chosen or takes long, and why, as the command's other words are said."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


def _say(message: str) -> None:
    print(f"memworker: {printable(message)}", file=sys.stderr)
