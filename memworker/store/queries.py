"""The searches of a table: each answer is of one version, without the rows that searches hide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from memworker.errors import UsageError
from memworker.store import fuse, recency, search, text as words
from memworker.store.clues import Query
from memworker.store.fieldnotes import FieldNotes
from memworker.store.filters import visible
from memworker.store.handle import Handle
from memworker.store.lance import lance_errors
from memworker.store.neighbours import Order, checked_context, hits_by_id, with_context
from memworker.store.opened import OpenTable
from memworker.store.readers import Readers
from memworker.store.recency import checked_half_life
from memworker.store.schema import Vectors
from memworker.store.search import Hit, SearchOptions, asked_columns
from memworker.store.snapshot import Snapshot

T = TypeVar("T")

_CHUNKS_A_TEXT = 4
_MORE = 8


class Queries:
    """Asks one table. May be shared by threads."""

    def __init__(self, table: OpenTable, versions: Handle, readers: Readers) -> None:
        self._table, self._versions, self._readers = table, versions, readers
        self._may_hide = False
        self.notes = FieldNotes(table.name)

    def note_on(self, where: Mapping[str, Any] | None) -> str:
        """Say which fields of a filter no row has."""
        if not self.notes.concern(where):
            return ""
        return self.at_one_version(lambda at: self.notes.note(at.table, where))

    def at_one_version(self, read: Callable[[Snapshot], T]) -> T:
        """Read by as many steps as it takes from one version, the newest, and return the answer.

        Where that version is deleted meanwhile, `read` is called again with a newer one.
        """

        def once() -> T:
            with lance_errors(f"reading table {self._table.name!r}"):
                snapshot = self._versions.newest()
                try:
                    return read(snapshot)
                except Exception:
                    self._versions.drop(snapshot)
                    raise

        return self._readers.ask(once)

    def must_have_the_same_vectors(self, at: Snapshot) -> None:
        """Raise TableMismatch if the table has been re-embedded since it was opened."""
        self._table.space.must_still_be(at.space, self._table.name)

    def near(self, vector: Vectors, options: SearchOptions, visible_only: bool) -> list[Hit]:
        """Return the rows nearest to a vector, best first."""

        def ask(at: Snapshot, options: SearchOptions) -> list[Hit]:
            self.must_have_the_same_vectors(at)
            asking = partial(search.search, at.table, self._table.space, vector)
            return _finished(at, partial(_texts, asking), options)

        return self._found(ask, options, visible_only)

    def near_each(
        self, vectors: Vectors, options: SearchOptions, visible_only: bool
    ) -> list[list[Hit]]:
        """Return those nearest to each of the vectors."""

        def ask(at: Snapshot, options: SearchOptions) -> list[list[Hit]]:
            self.must_have_the_same_vectors(at)
            if not options.group:
                return search.search_many(at.table, self._table.space, vectors, options)
            ask_one = partial(search.search, at.table, self._table.space)
            return [_texts(partial(ask_one, vector), options) for vector in vectors]

        return self._found(ask, options, visible_only)

    def with_words(self, text: str, options: SearchOptions, visible_only: bool) -> list[Hit]:
        """Return the rows that share words with a text, best first."""

        def ask(at: Snapshot, options: SearchOptions) -> list[Hit]:
            return _finished(at, partial(_texts, partial(words.search, at.table, text)), options)

        return self._found(ask, options, visible_only)

    def hybrid(
        self, text: str, vector: Vectors, options: SearchOptions, visible_only: bool
    ) -> list[Hit]:
        """Return the best of both rankings."""
        question = Query(text)

        def ask(at: Snapshot, options: SearchOptions) -> list[Hit]:
            self.must_have_the_same_vectors(at)
            near = partial(search.search, at.table, self._table.space, vector)
            said = partial(words.search, at.table, text)
            return _finished(at, partial(_fused, at, question, near, said), options)

        return self._found(ask, options, visible_only)

    def _found(
        self,
        ask: Callable[[Snapshot, SearchOptions], T],
        options: SearchOptions,
        visible_only: bool,
    ) -> T:
        """Search one version, leaving expired and superseded rows out unless they are wanted."""

        def read(at: Snapshot) -> T:
            asked = options
            if visible_only and self._may_hide_at(at):
                # By one time, however many looks the answer takes.
                asked = replace(options, where=visible(options.where))
            found = ask(at, asked)
            if not found:
                self.notes.warn(at.table, options.where)
            return found

        return self.at_one_version(read)

    def _may_hide_at(self, at: Snapshot) -> bool:
        # Where there were any, they are left out ever after, without the question.
        self._may_hide = self._may_hide or at.may_hide
        return self._may_hide


def search_options(
    limit: int,
    where: Mapping[str, Any] | None,
    exact: bool,
    columns: Sequence[str] | None,
    group: bool,
    context: Any,
    recency_half_life: Any,
) -> SearchOptions:
    """Return how to search. Raises UsageError for what cannot be."""
    beside, half_life_s = check_search(context, recency_half_life, group)
    return SearchOptions(limit, where, exact, columns, group, beside, half_life_s)


def check_search(context: Any, recency_half_life: Any, group: bool) -> tuple[int, float | None]:
    """Return how many rows on either side are wanted, and a half-life in seconds.

    Raises UsageError.
    """
    beside = checked_context(context)
    if beside and group:
        raise UsageError(
            "context gives the rows beside a hit, and group one hit a text; ask for one of them"
        )
    return beside, checked_half_life(recency_half_life)


def _finished(
    at: Snapshot, ask: Callable[[SearchOptions], list[Hit]], options: SearchOptions
) -> list[Hit]:
    """Search; let age take its part of the scores, and put beside hits what stands there."""
    if options.half_life_s is None and not options.context:
        return ask(options)
    columns = asked_columns(options, at.table)
    asked = options
    if options.half_life_s is not None:
        # What is recent may stand behind what is not.
        limit = fuse.depth(options.limit)
        asked = replace(options, limit=limit, columns=_with(columns, ("created_at",)))
    hits = ask(asked)
    if options.half_life_s is not None:
        hits = recency.faded(hits, options.half_life_s)[: options.limit]
        hits = [_only(hit, columns) for hit in hits]
    if options.context:
        read = partial(hits_by_id, at, columns=columns)
        hits = with_context(hits, Order.read(at, options.where, options.context), read)
    return hits


def _fused(
    at: Snapshot,
    question: Query,
    near: Callable[[SearchOptions], list[Hit]],
    said: Callable[[SearchOptions], list[Hit]],
    options: SearchOptions,
) -> list[Hit]:
    """Search by both and fuse; see fuse.py."""
    columns = asked_columns(options, at.table)
    needed = _with(columns, fuse.NEEDED_COLUMNS)
    asked = replace(options, limit=fuse.depth(options.limit), columns=needed)
    rankings = _texts(near, asked), _texts(said, asked)
    hits = fuse.fuse(
        question,
        *rankings,
        options.limit,
        key=_text_of if options.group else _row_of,
        order=Order.read(at, options.where, options.context) if options.context else None,
        read=partial(hits_by_id, at, columns=needed),
    )
    return [_only(hit, columns) for hit in hits]


def _with(columns: list[str], others: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys([*columns, *others]))


def _only(hit: Hit, columns: list[str]) -> Hit:
    """Take from a hit what was read for its ranking and not asked for."""
    if "text" not in columns:
        hit = replace(hit, text="")
    return hit if "created_at" in columns else replace(hit, created_at=None)


def _texts(ask: Callable[[SearchOptions], list[Hit]], options: SearchOptions) -> list[Hit]:
    """Search; where texts are wanted, ask for more chunks until there are enough of them."""
    if not options.group:
        return ask(options)
    limit, chunks = search.checked_limit(options.limit), options.limit * _CHUNKS_A_TEXT
    while True:
        asked = min(chunks, search.MAX_LIMIT)
        hits = ask(replace(options, limit=asked))
        best: dict[str, Hit] = {}
        for hit in hits:
            best.setdefault(_text_of(hit), hit)
        if len(best) >= limit or (len(hits) < asked and options.exact):
            return list(best.values())[:limit]
        if len(hits) < asked:
            # An index looks at a part of the rows: whether these are all, only a scan can tell.
            options = replace(options, exact=True)
        else:
            chunks *= _MORE


def _text_of(hit: Hit) -> str:
    return hit.id if hit.parent_id is None else hit.parent_id


def _row_of(hit: Hit) -> str:
    return hit.id
