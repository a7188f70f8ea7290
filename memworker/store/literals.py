"""Values as SQL literals: the one place where text, a number or a time becomes SQL."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from memworker.errors import FilterError
from memworker.values import exact_str, shown


def text(value: Any, name: str = "the filter") -> str:
    """Write text. Raises FilterError for what is none, or is not valid Unicode."""
    # In this dialect a doubled quote is the only escape; a backslash is a backslash.
    return "'" + exact(value, name).replace("'", "''") + "'"


def exact(value: Any, name: str = "the filter") -> str:
    """Return text as it is. Raises FilterError for what is none, or is not valid Unicode."""
    if not isinstance(value, str):
        raise FilterError(
            f"{name!r} holds text and cannot be compared with {shown(value)}; quote it"
        )
    said: str = exact_str(value)
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise FilterError(f"the value for {name!r} is not valid Unicode: {error}") from error
    return said


def number(name: str, value: float) -> str:
    """Write a number as a double. Raises FilterError for what is none, or is beyond all doubles."""
    try:
        exact = float(value)
    except OverflowError:
        exact = math.inf
    if not math.isfinite(exact):
        raise FilterError(f"{name!r} cannot be compared with {exact!r}; use a finite number")
    return f"CAST('{exact!r}' AS double)"


def time(column: str, value: Any) -> str:
    """Write a moment: a datetime or ISO 8601 text, in UTC where it has no zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise FilterError(
                f"{column!r} holds a time, and {value!r} is none; write 2026-01-31T12:00:00Z"
            ) from None
    if not isinstance(value, datetime):
        raise FilterError(f"{column!r} holds a time and cannot be compared with {shown(value)}")
    # A subclass may answer in its own way.
    moment = value if value.tzinfo else datetime.replace(value, tzinfo=UTC)
    try:
        told = datetime.isoformat(datetime.astimezone(moment, UTC), timespec="microseconds")
    except OverflowError:
        raise FilterError(f"{column!r}: {value} is outside the years 1 to 9999 in UTC") from None
    return f"timestamp '{told[:26]}Z'"
