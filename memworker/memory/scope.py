"""Whose memories: the ids that scope them, and filters that must name one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memworker import values
from memworker.errors import FilterError, ScopeMissing, UsageError

SCOPE_IDS = ("user_id", "agent_id", "run_id")


@dataclass(frozen=True, slots=True)
class Scope:
    """The ids that a memory belongs to; an empty one is none."""

    user_id: str = ""
    agent_id: str = ""
    run_id: str = ""

    @classmethod
    def of(cls, user_id: str | None, agent_id: str | None, run_id: str | None) -> Scope:
        """Check the ids of a call. Raises ScopeMissing without any, UsageError for a bad one."""
        given = dict(zip(SCOPE_IDS, (user_id, agent_id, run_id), strict=True))
        named = {name: _checked(name, value) for name, value in given.items() if value is not None}
        if not named:
            raise ScopeMissing(
                "whose memories? Give user_id, agent_id or run_id, for example user_id='alice'"
            )
        return cls(**named)

    def named(self) -> dict[str, str]:
        """Give the ids that are there; also the filter of all that carry at least these."""
        ids = {"user_id": self.user_id, "agent_id": self.agent_id, "run_id": self.run_id}
        return {name: value for name, value in ids.items() if value}


def scoped(filters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the filters of a search or a list, which must bind a scope id.

    Bound means: equal to, or in a list of, non-empty strings, at the top or inside
    AND, so that every row that is found has that id. Raises ScopeMissing.
    """
    if filters is not None and not isinstance(filters, Mapping):
        raise FilterError(f"filters are a mapping of fields to values, got {values.shown(filters)}")
    if filters is None or not _binds(filters):
        raise ScopeMissing(
            f"the filters {values.shown(dict(filters or {}))} do not say whose memories are meant."
            " Bind user_id, agent_id or run_id to a value, at the top or inside AND, for example"
            " filters={'user_id': 'alice'}"
        )
    return filters


def _binds(filters: Mapping[str, Any]) -> bool:
    if any(_bound(filters[name]) for name in SCOPE_IDS if name in filters):
        return True
    parts = filters.get("AND", ())
    return isinstance(parts, list | tuple) and any(
        _binds(part) for part in parts if isinstance(part, Mapping)
    )


def _bound(condition: Any) -> bool:
    if not isinstance(condition, Mapping):
        return _is_id(condition)
    if _is_id(condition.get("eq")):
        return True
    values = condition.get("in")
    # An empty text among the values would match rows without a user.
    listed = isinstance(values, list | tuple | set | frozenset) and bool(values)
    return listed and all(map(_is_id, values))  # type: ignore[arg-type]


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _checked(name: str, value: Any) -> str:
    if not _is_id(value):
        raise UsageError(f"{name} must be a string that is not blank, not {values.shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} {value!r} is not valid Unicode: {error}") from error
    return values.exact_str(value)
