"""Lines of JSON, taken one by one: what is wrong with one costs that line alone."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from memworker.errors import UsageError

# Beyond the largest text that a pool takes, with room for escapes and metadata.
MAX_LINE_BYTES = 16 * 2**20


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a binary file; one beyond MAX_LINE_BYTES is cut there.

    A byte-order mark at the beginning is dropped.
    """
    mark = codecs.BOM_UTF8
    while line := file.readline(MAX_LINE_BYTES):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
            pass
        yield line.removeprefix(mark)
        mark = b""


def text_of(line: bytes) -> str:
    """Decode a line, without its end. Raises UsageError, saying what is wrong with it."""
    if len(line) >= MAX_LINE_BYTES:
        raise UsageError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not valid UTF-8 at byte {error.start}") from None


def value_of(line: bytes) -> Any:
    """Read the JSON of a line. Raises UsageError, saying what is wrong with it."""
    text = text_of(line)
    try:
        return json.loads(text)
    except RecursionError:
        raise UsageError("it is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"it is not valid JSON: {error}") from None


def object_of(line: bytes) -> dict[str, Any]:
    """Read the JSON object of a line. Raises UsageError, saying what is wrong with it."""
    value = value_of(line)
    if not isinstance(value, dict):
        raise UsageError(f"it is not a JSON object but {value!r:.80}")
    return value
