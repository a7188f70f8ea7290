"""What callers hand in, checked item by item: contents and messages to drafts of memories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, get_args

from memworker import values
from memworker.containers import NotTexts, texts_in
from memworker.errors import MemworkerError, TextFailed, TextTooLarge, UsageError
from memworker.memory.scope import Scope

OnDuplicate = Literal["skip", "update", "allow"]
Message: TypeAlias = Mapping[str, Any]
Content: TypeAlias = str | Message


@dataclass(frozen=True, slots=True)
class Draft:
    """A memory to be: its text, and its metadata as JSON (None when none was given)."""

    text: str
    metadata_json: str | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Batch:
    """The drafts of one call, at which place of the input each stood, and what is wrong elsewhere.

    A place that is in neither held nothing to be stored, which only an `add` may give.
    """

    scope: Scope
    on_duplicate: OnDuplicate
    drafts: list[Draft] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    flaws: dict[int, MemworkerError] = field(default_factory=dict)
    cut: frozenset[int] = frozenset()
    """Where the model saw the beginning only."""

    @property
    def texts(self) -> list[str]:
        return [draft.text for draft in self.drafts]

    def raise_first(self) -> None:
        """Raise what is wrong with the first flawed item, if one is."""
        if self.flaws:
            raise self.flaws[min(self.flaws)]


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every item of a call."""

    scope: Scope
    expires_at: datetime | None
    on_duplicate: OnDuplicate
    max_text_bytes: int


def of_one(content: Content | Sequence[Message], metadata: Any, terms: Terms) -> Batch:
    """Read the content of one `add`: a text, a message, or a list of messages.

    Raises UsageError, TextTooLarge or TextFailed for the first item that is wrong.
    """
    several = isinstance(content, list | tuple)
    items = list(content) if several else [content]
    if several and not all(isinstance(item, Mapping) for item in items):
        raise UsageError(
            "add() takes a text, a message or a list of messages ({'role': …, 'content': …});"
            " for several texts use add_batch()"
        )
    batch = _read(items, [metadata] * len(items), terms)
    batch.raise_first()
    return batch


def of_many(contents: Iterable[Content], metadata: Any, terms: Terms) -> Batch:
    """Read the contents of one `add_batch`; what is wrong with an item costs that item only."""
    items = listed(contents)
    if not isinstance(metadata, list | tuple):
        metadata_json(metadata)
        metadata = [metadata] * len(items)
    if len(metadata) != len(items):
        raise UsageError(f"{len(items)} contents, but metadata for {len(metadata)}; give one each")
    batch = _read(items, metadata, terms)
    # A result each, so that callers can tell which is whose.
    for place in set(range(len(items))) - set(batch.places) - set(batch.flaws):
        batch.flaws[place] = UsageError(
            "a message of the role system, or without text, is not stored; leave it out"
        )
    return batch


def policy(on_duplicate: str) -> OnDuplicate:
    """Check what shall become of a memory that is there already."""
    found = values.checked_choice("on_duplicate", on_duplicate, get_args(OnDuplicate))
    return found  # type: ignore[return-value]


def listed(given: Iterable[Any], what: str = "contents", method: str = "add") -> list[Any]:
    """Return what a batch is made of as a list. Raises UsageError for a single one."""
    takes = f"{method}_batch() takes a list of {what}"
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise UsageError(f"{takes}, not a {type(given).__name__}; for one use {method}()")
    try:
        found = texts_in(given)
    except NotTexts as error:
        raise UsageError(f"{takes}: {error}") from None
    return found if isinstance(found, list) else list(found.to_pylist())


def checked_text(text: Any, max_bytes: int, index: int = 0) -> str:
    """Return a memory's text. Raises UsageError, TextTooLarge, TextFailed."""
    if not isinstance(text, str):
        raise UsageError(f"a memory is a str, not {type(text).__name__}: {values.shown(text)}")
    checked: str = values.exact_str(text)
    if not checked.strip():
        raise UsageError("a memory must not be blank; give it some text")
    try:
        size = len(checked.encode())
    except UnicodeEncodeError as error:
        raise TextFailed(
            f"the text is not valid Unicode (a lone surrogate at character {error.start}). Clean"
            " it, for example with text.encode('utf-8', 'replace').decode().",
            index,
        ) from None
    if size > max_bytes:
        raise TextTooLarge(
            f"the text has {size:,} bytes, over the cap of {max_bytes:,}. Split it, or raise the"
            " pool's max_text_bytes."
        )
    return checked


def metadata_json(metadata: Any) -> str | None:
    """Return metadata as JSON text (see `values`), None for None. Raises UsageError."""
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise UsageError(
            f"metadata must be a dict, not {type(metadata).__name__}: {values.shown(metadata)}"
        )
    try:
        return values.json_text(metadata)
    except values.Unsayable as error:
        raise UsageError(
            f"metadata must be JSON (text, finite numbers, booleans, None, lists and dicts with"
            f" str keys): {error}"
        ) from None


def moment(value: datetime | str | None, name: str = "expires_at") -> datetime | None:
    """Read a time, a datetime or ISO 8601 text; without a zone it is UTC. Raises UsageError."""
    if value is not None and type(value) not in (str, datetime):
        value = _as_text(value, name)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise UsageError(f"{name}={value!r} is no time; write 2026-01-31T12:00:00Z") from None
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise UsageError(f"{name} must be a datetime or ISO 8601 text, not {values.shown(value)}")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{name}={value} is outside the years 1 to 9999 in UTC") from None


def _as_text(value: Any, name: str) -> str | None:
    """Write a time of pandas' or numpy's, a date or an enum as text; None where it is missing."""
    try:
        found = values.plain(value)
    except values.Unsayable as error:
        raise UsageError(f"{name} {error}") from None
    if found is not None and not isinstance(found, str):
        raise UsageError(f"{name} must be a datetime or ISO 8601 text, not {values.shown(value)}")
    return found


def _read(items: Sequence[Any], metadata: Sequence[Any], terms: Terms) -> Batch:
    batch = Batch(terms.scope, terms.on_duplicate)
    for place, (item, own) in enumerate(zip(items, metadata, strict=True)):
        try:
            draft = _draft(item, own, terms, place)
        except MemworkerError as flaw:
            batch.flaws[place] = flaw
            continue
        if draft is not None:
            batch.drafts.append(draft)
            batch.places.append(place)
    return batch


def _draft(item: Any, metadata: Any, terms: Terms, place: int) -> Draft | None:
    if not isinstance(item, Mapping):
        text = checked_text(item, terms.max_text_bytes, place)
        return Draft(text, metadata_json(metadata), terms.expires_at)
    role = item.get("role")
    if not isinstance(role, str) or "content" not in item:
        raise UsageError(f"a message has a role and a content, got {values.shown(dict(item))}")
    if role == "system":
        # Instructions to the model are no memory; Mem0 leaves them out too.
        return None
    content = _said(item["content"])
    if content is None:
        return None
    text = checked_text(content, terms.max_text_bytes, place)
    own = {} if metadata is None else metadata
    metadata_json(own)
    said_by = {"role": role} | ({"actor_id": item["name"]} if item.get("name") else {})
    return Draft(text, metadata_json({**own, **said_by}), terms.expires_at)


def _said(content: Any) -> Any:
    """Return a message's text; None when it has none, as one that only calls tools."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return content
    said = [part.get("text") for part in content if part.get("type") == "text"]
    if not all(isinstance(text, str) for text in said):
        return content
    return " ".join(said) or None
