"""What is printed: others' texts on a terminal, and standard output under its name."""

from __future__ import annotations

import io
import sys
from typing import Any


def printable(text: str) -> str:
    """Bring text to one line that cannot steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def stderr_is_terminal() -> bool:
    """Tell whether somebody looks at stderr, which may be closed, or None where there is none."""
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
        errors=old.errors,
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
