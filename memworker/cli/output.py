"""What is printed: others' texts on a terminal, and standard output under its name."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memworker.paths import shown_name


def json_line(value: Any) -> str:
    """Return one line of JSON that can be written anywhere, whatever names of files it holds."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isascii():
        return text
    # Half characters stand within strings alone: names of files that are not UTF-8.
    half = {c for c in set(text) if "\ud800" <= c <= "\udfff"}
    text = text.translate({ord(c): json.dumps(shown_name(c))[1:-1] for c in half})
    utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    return text if utf8 else json.dumps(json.loads(text))


def print_grid(columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below the names of their columns, each with rich's options for it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name, options in columns.items():
        grid.add_column(name, **options)
    for row in rows:
        grid.add_row(*map(Text, row))
    Console().print(grid)


def printable(text: str) -> str:
    """Bring text to one line that cannot steer a terminal."""
    text = shown_name(text)
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def stderr_is_terminal() -> bool:
    """Tell whether stderr is a terminal; it may be closed, or None."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):
        return False


def name_standard_output() -> None:
    """Let `sys.stdout` raise errors that bear its name, as those of files bear their paths."""
    old = sys.stdout
    if not isinstance(old, io.TextIOWrapper):
        return
    raw = _StandardOutput(old.fileno(), "w", closefd=False)
    # Unbuffered is what Python was asked to be, by -u or PYTHONUNBUFFERED.
    buffer = raw if old.write_through else io.BufferedWriter(raw)
    sys.stdout = io.TextIOWrapper(
        buffer,
        encoding=old.encoding,
        # A name that its encoding does not have is shown with its code, and ends nothing.
        errors="backslashreplace" if old.errors == "strict" else old.errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


class _StandardOutput(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise
