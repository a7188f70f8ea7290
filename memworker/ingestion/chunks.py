"""Windows of chunks: texts cut beside the job, and held against the chunks that are there.

::

    batches of texts ─► cut, in a process ─► compared with the table ─► windows: all chunks of
                                               same: left out           what is new or changed,
                                               of another scope,        of which only those that
                                               in conflict: refused     are new are embedded
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_128_hexdigest

from memworker.chunking import Chunking
from memworker.errors import UsageError
from memworker.ingestion.conflicts import note_on_ids
from memworker.ingestion.fields import SCOPE_COLUMNS
from memworker.ingestion.records import (
    ReadBatch,
    Reject,
    path_of,
    rejected,
    scopes_of,
)
from memworker.ingestion.rejects import Refusals
from memworker.ingestion.report import Counts
from memworker.pool import Identity, Tokenization, TokenRows
from memworker.splitting import Splitter
from memworker.store import (
    IdStatus,
    KnownIds,
    OnConflict,
    Table,
    TextStatus,
    dedup_keys,
    embedded_texts,
)

Mask = npt.NDArray[np.bool_]
# Where a model takes texts of any length, and so says nothing of theirs.
_OWN_LENGTH = 256
_MARKDOWN = (".md", ".markdown", ".mdown")
_PACKED = (".gz", ".zst")
CONFLICT = (
    "id {!r} is already there with another text, or other metadata; --on-conflict update"
    " (on_conflict='update') puts this one in its place"
)
ELSEWHERE = (
    "id {!r} is already there in another scope; no update moves a text: delete that one, or give"
    " this another id"
)
TWICE = (
    "id {!r} came before in this input with another text, or other metadata, and the first counts;"
    " --on-conflict update (on_conflict='update') makes it the last"
)


def cut_for(chunking: Chunking, model: Identity) -> Chunking:
    """Say with numbers how texts are cut for a model. Raises UsageError."""
    if model.tokenization is None and model.name != "echo":
        raise UsageError(
            f"{model.name} counts tokens in a way of its own, so its texts cannot be cut by them;"
            " use a model by its name, or cut the texts before"
        )
    return chunking.for_model(model.max_tokens or max(chunking.tokens, _OWN_LENGTH))


@dataclass(frozen=True, slots=True)
class CutBatch:
    """A batch of texts and their chunks.

    `rows` has a row a chunk: the columns of its text's row, with the chunk's id and text in
    their place, and those of a chunk. `texts` int64[n] numbers the text of each, from 0.
    """

    batch: ReadBatch
    rows: pa.RecordBatch
    texts: npt.NDArray[np.int64]


class Cutting:
    """Cuts batches of texts, in a process that is started with the first."""

    def __init__(self, chunking: Chunking, tokenization: Tokenization | None) -> None:
        self._chunking = chunking
        self.splitter = Splitter(chunking, tokenization)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.splitter.close()

    def cut(self, batches: Iterable[ReadBatch]) -> Iterator[CutBatch]:
        """Cut batches as they come, some megabytes at a time."""
        for batch in batches:
            rows = _with_parents(batch.rows)
            first = True
            for start, cut in self.splitter.split(
                rows["parent_id"], rows["text"], self._titles(rows), self._markdown(batch)
            ):
                end = cut["row"][-1].as_py() + 1 if cut.num_rows else start
                part = batch.rows.slice(start, max(end, start) - start)
                told = ReadBatch(batch.path, part, batch.rejects if first else ())
                yield CutBatch(told, _joined(rows, cut), cut["row"].to_numpy() - start)
                first = False
            if first:
                yield CutBatch(batch, _joined(rows, _NOTHING), np.empty(0, np.int64))

    def _titles(self, rows: pa.RecordBatch) -> pa.Array:
        if not self._chunking.contextual:
            return pa.nulls(rows.num_rows, pa.string())
        return pa.array(map(_title, rows["metadata"].to_pylist()), pa.string())

    def _markdown(self, batch: ReadBatch) -> pa.Array:
        count = batch.rows.num_rows
        if self._chunking.markdown is not None:
            return pa.repeat(self._chunking.markdown, count)
        if "path" not in batch.rows.schema.names:
            return pa.repeat(_is_markdown(batch.path), count)
        return pa.array(map(_is_markdown, batch.rows["path"].to_pylist()), pa.bool_())


_NOTHING = pa.RecordBatch.from_pydict(
    {
        "row": pa.array([], pa.int64()),
        "id": pa.array([], pa.string()),
        "text": pa.array([], pa.string()),
        "chunk": pa.array([], pa.int32()),
        "char_start": pa.array([], pa.int64()),
        "char_end": pa.array([], pa.int64()),
        "last_chunk": pa.array([], pa.bool_()),
        "context": pa.array([], pa.string()),
        "ids": pa.array([], pa.binary()),
    }
)


def _with_parents(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Add what each row's chunks are called after: its id, or what its text and scope give."""
    if not rows["id"].null_count:
        return rows.append_column("parent_id", rows["id"])
    scopes = scopes_of(rows)
    keys = dedup_keys(rows["text"], *(scopes.get(name) for name in SCOPE_COLUMNS))
    return rows.append_column("parent_id", pc.coalesce(rows["id"], keys))


def _joined(rows: pa.RecordBatch, cut: pa.RecordBatch) -> pa.RecordBatch:
    """Give each chunk the columns of its text, and its dedup key."""
    own = [name for name in rows.schema.names if name not in ("id", "text")]
    columns = {name: rows[name].take(cut["row"]) for name in own}
    columns |= {name: cut[name] for name in cut.schema.names if name != "row"}
    scopes = [columns.get(name) for name in SCOPE_COLUMNS]
    columns["key"] = dedup_keys(cut["text"], *scopes)
    return pa.RecordBatch.from_pydict(columns)


def _title(metadata: str | None) -> str | None:
    title = json.loads(metadata).get("title") if metadata else None
    return title if isinstance(title, str) else None


def _is_markdown(path: str) -> bool:
    name = path.lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    return name.endswith(_MARKDOWN)


@dataclass(frozen=True, slots=True)
class ChunkWindow:
    """All chunks of some texts, or a part of them; only those that are `unknown` are embedded.

    `embedded` are the latter's texts, behind their context, and `tokens` the same as tokens,
    which need not be made again.
    """

    path: str
    rows: pa.RecordBatch
    unknown: Mask
    embedded: pa.Array
    tokens: TokenRows | None

    @classmethod
    def of(cls, path: str, rows: pa.RecordBatch, unknown: Mask) -> ChunkWindow:
        """Find the texts to embed."""
        asked = rows if unknown.all() else rows.filter(pa.array(unknown))
        ids = asked["ids"]
        tokens = None if ids.null_count else TokenRows(ids)
        # What waits for its commit does without them.
        rest = rows.drop_columns(["ids"])
        return cls(path, rest, unknown, embedded_texts(asked), tokens)

    def __len__(self) -> int:
        return self.rows.num_rows  # type: ignore[no-any-return]

    @property
    def texts(self) -> pa.Array | TokenRows:
        return self.embedded if self.tokens is None else self.tokens

    @property
    def text_keys(self) -> pa.Array:
        """Arrow string[n], equal where the texts are."""
        return dedup_keys(self.embedded)

    def cut(self, ends: Iterable[int]) -> Iterator[ChunkWindow]:
        """Give windows that end with these texts to embed, and what is behind them, uncopied."""
        places = np.flatnonzero(self.unknown)
        start = begin = 0
        for end in [*list(ends)[:-1], len(places)]:
            stop = int(places[end]) if end < len(places) else len(self)
            if stop > start:
                yield self.part(start, stop, begin, end)
            start, begin = stop, end

    def part(self, start: int, stop: int, begin: int, end: int) -> ChunkWindow:
        """Give some rows, of which the texts from `begin` to `end` are embedded."""
        return ChunkWindow(
            self.path,
            self.rows.slice(start, stop - start),
            self.unknown[start:stop],
            self.embedded.slice(begin, end - begin),
            self.tokens and self.tokens.slice(begin, end - begin),
        )

    def rejects(self, reasons: dict[int, str]) -> list[Reject]:
        """Describe chunks that could not be embedded; `reasons` by their place in `texts`."""
        places = np.flatnonzero(self.unknown)
        return [self._reject(int(places[at]), why) for at, why in sorted(reasons.items())]

    def _reject(self, row: int, why: str) -> Reject:
        number, start, end = (
            self.rows[name][row].as_py() for name in ("chunk", "char_start", "char_end")
        )
        told = rejected(self.path, self.rows, row, f"chunk {number} ({start} to {end}): {why}")
        return Reject(
            told.path,
            told.line,
            told.ordinal,
            told.reason,
            self.rows["parent_id"][row].as_py(),
            told.excerpt,
        )


@dataclass(frozen=True, slots=True)
class ChunkSieve:
    """Lets through the texts of which something must be written; counts and reports the others.

    With `first_counts` a text that comes twice under one id is a conflict with itself, also
    where one that was there before is updated.
    """

    table: Table | None
    refusals: Refusals
    on_conflict: OnConflict
    first_counts: bool
    notes: list[str] = field(default_factory=list)
    seen: KnownIds = field(default_factory=KnownIds)
    contested: set[str] = field(default_factory=set)

    @property
    def counts(self) -> Counts:
        return self.refusals.counts

    def windows(self, batches: Iterable[CutBatch]) -> Iterator[ChunkWindow]:
        """Turn cut batches into windows, in input order, no parent twice in one of them."""
        for cut in batches:
            self.counts.add(read=cut.batch.read, chunks=cut.rows.num_rows)
            self.refusals.add(cut.batch.rejects)
            if not self.notes and (note := note_on_ids(cut.batch.rows)):
                self.notes.append(note)
            if cut.rows.num_rows:
                yield from self._windows(cut)

    def _windows(self, cut: CutBatch) -> Iterator[ChunkWindow]:
        unknown = np.ones(len(cut.texts), np.bool_)
        dropped = np.zeros(int(cut.texts[-1]) + 1, np.bool_)
        if self.table is not None:
            there = self.table.compare_chunks(_as_compared(cut.rows), cut.texts)
            unknown = there.unknown
            contested = self._contested(cut, there.texts)
            # What is there of these now may be gone when they are written.
            unknown |= contested[cut.texts]
            self._refuse(cut, np.where(contested, TextStatus.CHANGED, there.texts), dropped)
        if self.first_counts:
            self._first_ones(cut, dropped)
        kept = ~dropped[cut.texts]
        texts = cut.texts[kept]
        rows = cut.rows if kept.all() else cut.rows.filter(pa.array(kept))
        unknown, start = unknown[kept], 0
        for end in _parents_once(rows, texts):
            yield ChunkWindow.of(cut.batch.path, rows.slice(start, end - start), unknown[start:end])
            start = end

    def _contested(self, cut: CutBatch, status: npt.NDArray[np.uint8]) -> Mask:
        """Mark texts whose parent changes in this run, perhaps again: the last one must win."""
        marked = np.zeros(len(status), np.bool_)
        if self.first_counts or self.on_conflict is not OnConflict.UPDATE:
            return marked
        begins = np.flatnonzero(np.diff(cut.texts, prepend=-1))
        texts = cut.texts[begins].tolist()
        parents = cut.rows["parent_id"].take(pa.array(begins)).to_pylist()
        here: set[str] = set()
        for text, parent in zip(texts, parents, strict=True):
            if status[text] == TextStatus.CHANGED or parent in here:
                self.contested.add(parent)
            here.add(parent)
        for text, parent in zip(texts, parents, strict=True):
            marked[text] = parent in self.contested and status[text] != TextStatus.ELSEWHERE
        return marked

    def _refuse(self, cut: CutBatch, status: npt.NDArray[np.uint8], dropped: Mask) -> None:
        same = status == TextStatus.SAME
        self.counts.add(duplicates=int(same[cut.texts].sum()))
        refused = {int(at): ELSEWHERE for at in np.flatnonzero(status == TextStatus.ELSEWHERE)}
        if self.on_conflict is not OnConflict.UPDATE:
            changed = np.flatnonzero(status == TextStatus.CHANGED)
            refused |= {int(at): CONFLICT for at in changed}
        self._list(cut, refused)
        dropped |= same
        dropped[list(refused)] = True

    def _first_ones(self, cut: CutBatch, dropped: Mask) -> None:
        """Leave out texts whose parent came before in this run."""
        begins = np.flatnonzero(np.diff(cut.texts, prepend=-1))
        texts, parents = cut.texts[begins].tolist(), cut.rows["parent_id"].take(pa.array(begins))
        contents = _contents(cut.rows, begins)
        hashes = self.seen.hash(parents, pa.array(contents, pa.string()))
        before = self.seen.find(*hashes).tolist()
        self.seen.add(*(each[np.array(before) == IdStatus.NEW] for each in hashes))
        here: dict[str, str] = {}
        refused: dict[int, str] = {}
        for text, parent, content, status in zip(
            texts, parents.to_pylist(), contents, before, strict=True
        ):
            first = here.setdefault(parent, content)
            again = status == IdStatus.DUPLICATE or first is not content
            other = status == IdStatus.CONFLICT or first != content
            if not dropped[text] and (again or other):
                dropped[text] = True
                if other:
                    refused[text] = TWICE
                else:
                    self.counts.add(duplicates=int((cut.texts == text).sum()))
        self._list(cut, refused)

    def _list(self, cut: CutBatch, refused: dict[int, str]) -> None:
        rows = {text: int(np.searchsorted(cut.texts, text)) for text in sorted(refused)}
        self.refuse(cut.batch.path, cut.rows, {row: refused[text] for text, row in rows.items()})

    def refuse(self, path: str, rows: pa.RecordBatch, why: dict[int, str]) -> None:
        """Count texts as conflicts, each named by a chunk of it; list them unless skipped."""
        self.counts.add(conflicts=len(why))
        if self.on_conflict is OnConflict.SKIP or not why:
            return
        self.refusals.list([_text_refused(path, rows, row, told) for row, told in why.items()])


def _text_refused(path: str, rows: pa.RecordBatch, row: int, why: str) -> Reject:
    parent = rows["parent_id"][row].as_py()
    line, ordinal = (rows[name][row].as_py() for name in ("line", "ordinal"))
    told = rejected(path, rows, row, why.format(parent))
    return Reject(path_of(rows, row, path), line, ordinal, told.reason, parent, told.excerpt)


def _as_compared(rows: pa.RecordBatch) -> pa.Table:
    """Give chunks the columns that the store compares."""
    scopes = scopes_of(rows)
    none = pa.repeat("", rows.num_rows)
    columns = {name: rows[name] for name in _COMPARED}
    columns |= {name: scopes.get(name, none) for name in SCOPE_COLUMNS}
    return pa.table({**columns, "dedup_key": rows["key"]})


_COMPARED = ("id", "parent_id", "chunk", "char_start", "char_end", "last_chunk", "metadata")


def _parents_once(rows: pa.RecordBatch, texts: npt.NDArray[np.int64]) -> Iterator[int]:
    """Give the ends of runs of texts in which no two are of one parent."""
    if not rows.num_rows:
        return
    begins = np.flatnonzero(np.diff(texts, prepend=-1))
    inside: set[str] = set()
    for begin, parent in zip(
        begins.tolist(), rows["parent_id"].take(pa.array(begins)).to_pylist(), strict=True
    ):
        if parent in inside:
            yield begin
            inside = set()
        inside.add(parent)
    yield rows.num_rows


def _contents(rows: pa.RecordBatch, begins: npt.NDArray[np.int64]) -> list[str]:
    """Give 32 hex digits a text, equal where all its chunks and metadata are."""
    ids, metadata = rows["id"].to_pylist(), rows["metadata"].take(pa.array(begins)).to_pylist()
    ends = [*begins[1:].tolist(), len(ids)]
    return [
        xxh3_128_hexdigest(("".join(ids[begin:end]) + (said or "")).encode())
        for begin, end, said in zip(begins.tolist(), ends, metadata, strict=True)
    ]
