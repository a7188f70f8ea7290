"""What has to be done with each file: nothing, or its document read and given on to be embedded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from memworker.ingestion.documents.extraction import Extraction
from memworker.ingestion.documents.kinds import (
    BadDocument,
    Document,
    NoDocument,
    beside,
    document,
    extraction_kinds,
)
from memworker.ingestion.documents.suffixes import kind_of
from memworker.ingestion.readers.objects import LONE_SURROGATE, metadata_column
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import EXCERPT_CHARS, Reject, row_batch
from memworker.ingestion.rejects import Refusals
from memworker.ingestion.sync.catalogue import Catalogue, stamp_of
from memworker.ingestion.sync.looking import FoundFile, Vanished, read_whole
from memworker.ingestion.sync.outcome import FileCounts
from memworker.ingestion.windows import Window
from memworker.paths import shown_name
from memworker.store import dedup_keys

WINDOW_ROWS = 2048
_WINDOW_BYTES = 8 << 20
# Another way to read the same bytes gives other documents: then all are read anew.
_READING = 1
# What an edit of a document changes, whatever of it was edited.
_PASSING = ("size", "modified", "content_hash")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Naming:
    """How a table calls the documents of a folder: `folder` stands in each row."""

    folder: str
    prefix: str = ""

    def id_of(self, name: str) -> str:
        """Return the id of the document that a file is."""
        return f"{self.prefix}{name}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: `by_stamp` believes that one which was not written is as it was.

    Where documents become `chunks`, those whose content the table has wait for the others.
    """

    by_stamp: bool = True
    text_field: str | None = None
    encoding: str = ""
    max_text_bytes: int = 1 << 20
    chunks: bool = False

    def key(self, kind: str) -> str:
        """Return what else than the bytes of a file decides what document it is."""
        text_field = self.text_field if kind == "json" else None
        encoding = "" if kind in extraction_kinds() else self.encoding
        return json.dumps([_READING, kind, text_field, *filter(None, [encoding])])


@dataclass(slots=True)
class Underway:
    """Documents between planning and commit, by id: what is done, and whose vector may serve.

    `told` is what was found out about their fields.
    """

    doing: dict[str, str] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    told: Findings = field(default_factory=Findings)


class Planner:
    """Turns files into windows of the documents that have to be written."""

    def __init__(
        self,
        naming: Naming,
        reading: Reading,
        catalogue: Catalogue,
        counts: FileCounts,
        refusals: Refusals,
        extraction: Extraction,
    ) -> None:
        self._naming, self._reading, self._catalogue = naming, reading, catalogue
        self._counts, self._refusals, self._extraction = counts, refusals, extraction
        self.underway = Underway()
        self._rows: list[tuple[FoundFile, Document, dict[str, Any]]] = []
        self._bytes = 0
        self._position = 0
        self._waiting: list[tuple[FoundFile, bool, str | None]] = []
        self.complete = False
        """Whether all files were looked at."""

    def windows(self, files: Iterator[FoundFile]) -> Iterator[Window]:
        """Yield windows, none of them empty."""
        for file in files:
            self._look_at(file)
            if len(self._rows) >= WINDOW_ROWS or self._bytes >= _WINDOW_BYTES:
                yield from self._window()
        yield from self._window()
        self.complete = True

    def waiting_windows(self) -> Iterator[Window]:
        """Yield windows of the documents that wait, whose vectors may be those of others."""
        waiting, self._waiting = self._waiting, []
        self._reading = replace(self._reading, chunks=False)
        for file, held, hash in waiting:
            self._compared(file, held, hash)
            if len(self._rows) >= WINDOW_ROWS or self._bytes >= _WINDOW_BYTES:
                yield from self._window()
        yield from self._window()

    def _look_at(self, file: FoundFile) -> None:
        self._position += 1
        if file.fault:
            self._refuse(file, file.fault)
            return
        self._counts.files += 1
        held, hash, met = self._catalogue.see(file.name)
        if met:
            self._refuse(file, "another file's name is shown as this one's is; rename one")
            return
        self._compared(file, held, hash)

    def _compared(self, file: FoundFile, held: bool, hash: str | None) -> None:
        try:
            self._compare(file, held, hash)
        except Vanished:
            self._counts.files -= 1
            self._counts.vanished += 1
            self._catalogue.miss(file.name)
        except NoDocument as reason:
            self._counts.files -= 1
            self._counts.left_out.add(str(reason), file.path)
            self._catalogue.textless(file.name)
        except BadDocument as reason:
            self._refuse(file, str(reason))

    def _compare(self, file: FoundFile, held: bool, hash: str | None) -> None:
        if held and hash is not None and self._reading.by_stamp and self._as_it_was(file, hash):
            self._counts.unchanged += 1
            return
        data, facts = read_whole(file.path)
        content = xxh3_128_hexdigest(data)
        kind = kind_of(file.path)
        assert kind is not None
        mine = self._mixed(content, kind)
        self._catalogue.note(file.name, facts, content)
        if held and hash == mine:
            self._counts.unchanged += 1
            return
        other = self._catalogue.same_content(mine)
        if other and self._reading.chunks:
            self._waiting.append((file, held, hash))
            return
        found = document(
            kind,
            data,
            self._extraction,
            text_field=self._reading.text_field,
            encoding=self._reading.encoding,
        )
        size = len(found.text.encode())
        if size > self._reading.max_text_bytes:
            raise BadDocument(
                f"text of {size:,} bytes, over the cap of {self._reading.max_text_bytes:,}"
                " (--max-text-bytes, max_text_bytes=)"
            )
        if found.note:
            self._counts.without_fields.add(found.note, file.path)
        self._add(
            file, found, self._fields(file, found, facts, mine), "updated" if held else "added"
        )
        if not held:
            self._catalogue.found(mine)
        if other:
            self.underway.alike[self._naming.id_of(file.name)] = self._naming.id_of(other)
        self._bytes += size

    def _as_it_was(self, file: FoundFile, hash: str) -> bool:
        try:
            known = self._catalogue.hash_at(file.name, stamp_of(os.stat(file.path)))
        except OSError:
            return False  # reading it will say so
        kind = kind_of(file.path)
        return known is not None and kind is not None and self._mixed(known, kind) == hash

    def _mixed(self, content: str, kind: str) -> str:
        return xxh3_128_hexdigest(f"{content} {self._reading.key(kind)}".encode())

    def _add(self, file: FoundFile, found: Document, fields: dict[str, Any], doing: str) -> None:
        self._rows.append((file, found, fields))
        self.underway.doing[self._naming.id_of(file.name)] = doing

    def _fields(
        self, file: FoundFile, found: Document, facts: os.stat_result, hash: str
    ) -> dict[str, Any]:
        ours = {
            "folder": self._naming.folder,
            "path": file.name,
            "size": facts.st_size,
            "modified": modified(facts),
            "content_hash": hash,
        }
        return beside(found.fields, ours)

    def _window(self) -> Iterator[Window]:
        rows, self._rows, self._bytes = self._rows, [], 0
        if not rows:
            return
        faults: dict[int, str] = {}
        fields = [fields for _, _, fields in rows]
        metadata = metadata_column(fields, faults, LONE_SURROGATE, self.underway.told)
        for at, reason in faults.items():
            self.underway.doing.pop(self._naming.id_of(rows[at][0].name), None)
            self._refuse(rows[at][0], reason)
        texts = pa.array([found.text for _, found, _ in rows], pa.string())
        ids = pa.array([self._naming.id_of(file.name) for file, _, _ in rows], pa.string())
        count = len(rows)
        batch = row_batch(np.ones(count, np.int64), texts, ids, None, metadata)
        ordinals = np.arange(self._position - count, self._position, dtype=np.int64)
        batch = batch.append_column("ordinal", pa.array(ordinals))
        batch = batch.append_column("path", pa.array([shown_name(f.path) for f, _, _ in rows]))
        batch = batch.append_column("key", dedup_keys(texts))
        lasting = [
            {name: value for name, value in fields.items() if name not in _PASSING}
            for _, _, fields in rows
        ]
        kept = metadata_column(lasting, {}, LONE_SURROGATE, Findings())
        batch = batch.append_column("lasting", kept)
        good = np.ones(count, np.bool_)
        good[list(faults)] = False
        window = Window(shown_name(rows[0][0].path), batch).keep(good)
        if len(window):
            yield window

    def _refuse(self, file: FoundFile, reason: str) -> None:
        """List a file that cannot be read; what the table holds of it, and under it, stays."""
        self._catalogue.spare(file.name)
        excerpt = file.name[:EXCERPT_CHARS]
        row_id = self._naming.id_of(file.name)
        path = shown_name(file.path)
        self._refusals.counts.add(read=1)
        self._refusals.add([Reject(path, 1, self._position, shown_name(reason), row_id, excerpt)])


def modified(facts: os.stat_result) -> str | None:
    """Return when a file was written, or None where no calendar has the time."""
    try:
        moment = _EPOCH + timedelta(microseconds=facts.st_mtime_ns // 1000)
    except OverflowError:
        return None
    return moment.isoformat().replace("+00:00", "Z")
