"""Lines of JSON, taken one by one: what is wrong with one costs that line alone."""

from __future__ import annotations

import json
from typing import Any

from memworker.errors import UsageError

# Beyond the largest text that a pool takes, with room for escapes and metadata.
MAX_LINE_BYTES = 16 * 2**20


def text_of(line: str | bytes) -> str:
    """Decode a line, without its end. Raises UsageError, saying what is wrong with it."""
    if len(line) > MAX_LINE_BYTES:
        raise UsageError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
    if isinstance(line, str):
        return line.rstrip("\r\n")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not valid UTF-8 at byte {error.start}") from None


def value_of(line: str | bytes) -> Any:
    """Read the JSON of a line. Raises UsageError, saying what is wrong with it."""
    text = text_of(line)
    try:
        return json.loads(text, object_pairs_hook=without_doubles)
    except RecursionError:
        raise UsageError("it is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"it is not valid JSON: {error}") from None


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its fields. Raises ValueError where two have one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the field {double!r} twice; which one is meant is not known")
    return found


def object_of(line: str | bytes) -> dict[str, Any]:
    """Read the JSON object of a line. Raises UsageError, saying what is wrong with it."""
    value = value_of(line)
    if not isinstance(value, dict):
        raise UsageError(f"it is not a JSON object but {value!r:.80}")
    return value
