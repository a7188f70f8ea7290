"""Which fields of a row become its text, id, scope and metadata: by name, by path, by template.

A field called ``a.b`` is the field of that name where a row has one, else the field ``b`` of
the object ``a``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memworker import values
from memworker.errors import UsageError
from memworker.values import shown

SCOPE_COLUMNS = ("user_id", "agent_id", "run_id")
ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class Template:
    """Text with fields in braces; a brace that is meant is doubled.

    `parts` are pairs of the text before a field and the field; `tail` is what follows the last.
    """

    given: str
    parts: tuple[tuple[str, str], ...]
    tail: str = ""

    @classmethod
    def parsed(cls, given: Any, option: str) -> Template:
        """Read a template. Raises UsageError, naming `option`."""
        if not isinstance(given, str):
            raise UsageError(
                f"{option} must be text such as '{{title}}: {{body}}', not {shown(given)}"
            )
        parts: list[tuple[str, str]] = []
        before, at = "", 0
        while at < len(given):
            mark = given[at]
            if mark in "{}" and given[at : at + 2] == 2 * mark:
                before, at = before + mark, at + 2
            elif mark == "{":
                end = given.find("}", at)
                name = given[at + 1 : end]
                if end < 0 or not name.strip() or "{" in name:
                    raise UsageError(_bad(option, given, "a brace opens and names no field"))
                parts.append((before, name))
                before, at = "", end + 1
            elif mark == "}":
                raise UsageError(_bad(option, given, "a brace closes and none was opened"))
            else:
                before, at = before + mark, at + 1
        if not parts:
            raise UsageError(_bad(option, given, "it names no field, so all rows would be alike"))
        return cls(given, tuple(parts), before)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts))

    def filled(self, found: Mapping[str, str]) -> str:
        """Put the values in their places; "" where there is none."""
        pieces = (f"{before}{found.get(name, '')}" for before, name in self.parts)
        return "".join(pieces) + self.tail


def _bad(option: str, given: str, why: str) -> str:
    return f"{option} {given!r}: {why}; write fields as {{name}}, and a brace itself twice"


@dataclass(frozen=True, slots=True)
class Joined:
    """Several fields one behind the other, each on a line of its own; those without a value not."""

    names: tuple[str, ...]

    def filled(self, found: Mapping[str, str]) -> str:
        """Join the values that there are."""
        return "\n".join(found[name] for name in self.names if found.get(name))


@dataclass(frozen=True, slots=True)
class Fields:
    """Which input field becomes which column.

    `scopes` holds (column, field) pairs: ``(("user_id", "author"),)`` takes the
    column `user_id` from the field `author`. A `composed` text, of several fields, stands in
    the place of the field `text`, an `id_template` in that of the field `id`. Fields that none
    of `text`, `id` and `scopes` names go into the metadata, unless `metadata` is false or
    names those that do.
    """

    text: str = "text"
    id: str = "id"
    scopes: tuple[tuple[str, str], ...] = ()
    metadata: bool | tuple[str, ...] = True
    composed: Template | Joined | None = None
    id_template: Template | None = None

    def __post_init__(self) -> None:
        columns = [column for column, _ in self.scopes]
        for column in columns:
            if column not in SCOPE_COLUMNS:
                raise UsageError(f"no scope {column!r}; there are {', '.join(SCOPE_COLUMNS)}")
            if columns.count(column) > 1:
                raise UsageError(f"scope {column!r} is given twice; name one field for it")

    @classmethod
    def of(
        cls,
        text_field: str | Sequence[str] = "text",
        id_field: str = "id",
        scope: Mapping[str, str] | None = None,
        metadata: bool | str | Sequence[str] | None = None,
        text_template: str | None = None,
        id_template: str | None = None,
    ) -> Fields:
        """Take the arguments of `ingest`. Raises UsageError where they cannot be meant together."""
        names = _names(text_field, "text_field (--text-field)")
        if text_template is not None and names not in ((), ("text",)):
            raise UsageError(
                f"text_field={names[0]!r} and a text template are given (--text-field,"
                " --text-template); put the field into the template, or leave it out"
            )
        if id_template is not None and id_field != "id":
            raise UsageError(
                f"id_field={id_field!r} and an id template are given (--id-field, --id-template);"
                " name one of them"
            )
        composed: Template | Joined | None = Joined(names) if len(names) > 1 else None
        if text_template is not None:
            composed = Template.parsed(text_template, "--text-template")
        ids = None if id_template is None else Template.parsed(id_template, "--id-template")
        scopes = tuple((scope or {}).items())
        text = names[0] if names else "text"
        return cls(text, id_field, scopes, _chosen(metadata), composed, ids)

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields that the text is made of."""
        return (self.text,) if self.composed is None else self.composed.names

    @property
    def lone_text(self) -> str:
        """The name of the text where a row is nothing but that."""
        return self.texts[0]

    @property
    def ids(self) -> tuple[str, ...]:
        """The fields that the id is made of."""
        return (self.id,) if self.id_template is None else self.id_template.names

    @property
    def required(self) -> tuple[str, ...]:
        """Fields that the input must have: text, scopes, and an id field named on purpose."""
        chosen_id = () if self.ids == ("id",) and self.id_template is None else self.ids
        named = (*self.texts, *chosen_id, *(field for _, field in self.scopes))
        return tuple(dict.fromkeys(named))

    @property
    def used(self) -> frozenset[str]:
        """Fields that do not go into the metadata: parts of an id do."""
        ids = () if self.id_template is not None else (self.id,)
        return frozenset((*self.texts, *ids, *(field for _, field in self.scopes)))

    @property
    def wanted(self) -> frozenset[str] | None:
        """All fields that are looked at; None where that is all there are."""
        if self.metadata is True:
            return None
        return self.used | {*self.ids, *(self.metadata or ())}

    def option_of(self, name: str) -> str:
        """Say by which option a field is named."""
        if name in self.texts:
            return "--text-template" if isinstance(self.composed, Template) else "--text-field"
        if name in self.ids:
            return "--id-field" if self.id_template is None else "--id-template"
        return "--scope COLUMN=FIELD"

    def told(self) -> dict[str, str]:
        """Describe what tells one way of reading rows from another, for the journal."""
        told = {"text_field": self.text, "id_field": self.id}
        told |= {f"scope.{column}": field for column, field in self.scopes}
        if isinstance(self.composed, Template):
            told["text_template"] = self.composed.given
        elif self.composed is not None:
            told["text_field"] = ", ".join(map(repr, self.composed.names))
        if self.id_template is not None:
            told["id_template"] = self.id_template.given
        if self.metadata is not True:
            told["metadata"] = ",".join(self.metadata or ("none",))
        return told


def _names(given: Any, what: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given or ())
    for name in names:
        if not isinstance(name, str) or not name:
            raise UsageError(f"{what} must name a field, or several, not {shown(given)}")
        if names.count(name) > 1:
            raise UsageError(f"{what} names {name!r} twice")
    return names


def _chosen(metadata: Any) -> bool | tuple[str, ...]:
    """Read "all", "none" or names parted by commas; the same as Python's own values."""
    if metadata is None or isinstance(metadata, bool):
        return True if metadata is None else metadata
    if isinstance(metadata, str):
        if metadata in ("all", "none"):
            return metadata == "all"
        metadata = [name.strip() for name in metadata.split(",")]
    names = _names([name for name in metadata if name != ""], "metadata (--metadata)")
    return names or False


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a field, nested ones by dots; ABSENT where there is none."""
    found = row.get(name, ABSENT)
    if found is not ABSENT or "." not in name:
        return found
    for head, rest in splits(name):
        inner = row.get(head)
        if isinstance(inner, Mapping) and (found := value_at(inner, rest)) is not ABSENT:
            return found
    return ABSENT


def splits(name: str) -> Iterator[tuple[str, str]]:
    """Part a name at each of its dots, the last one first: the longest name there is, is meant."""
    at = name.rfind(".")
    while at > 0:
        if name[at + 1 :]:
            yield name[:at], name[at + 1 :]
        at = name.rfind(".", 0, at)


def without(row: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """Return the fields that are left when those that are used are taken away."""
    used = frozenset(used)
    rest = {name: value for name, value in row.items() if name not in used}
    for name in used:
        if "." in name and name not in row:
            rest = _taken(rest, name)
    return rest


def _taken(row: dict[str, Any], name: str) -> dict[str, Any]:
    """Take a nested field away, and objects that it leaves empty; what is inside is not altered."""
    for head, rest in splits(name):
        inner = row.get(head)
        if not isinstance(inner, Mapping) or value_at(inner, rest) is ABSENT:
            continue
        left = {k: v for k, v in inner.items() if k != rest}
        left = left if rest in inner else _taken(dict(inner), rest)
        changed = {k: (left if k == head else v) for k, v in row.items()}
        if not left:
            del changed[head]
        return changed
    return row


def words_of(value: Any) -> str | None:
    """Return the text of a value in a template; None for what is no value. Raises Unsayable."""
    if isinstance(value, str):
        return values.exact_str(value)
    if value is ABSENT or values.is_missing(value):
        return None
    plain = values.plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, str | int | float):
        return str(plain)
    kind = "a list" if isinstance(plain, list) else "an object"
    raise values.Unsayable(f"is {kind}; a template takes text, numbers and times")


def id_words_of(value: Any) -> str | None:
    """Return the text of a value in the template of an id: `words_of`, but whole numbers alike."""
    if isinstance(value, float) or type(value).__module__ == "numpy":
        try:
            return None if values.is_missing(value) else values.id_text(value)
        except values.Unsayable:
            pass
    return words_of(value)
