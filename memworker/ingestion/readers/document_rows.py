"""Files that are one document each, as rows: their text and fields, the id their path."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from memworker.errors import InputError
from memworker.ingestion.documents import kinds  # by itself, for it imports this room too
from memworker.ingestion.documents.suffixes import kind_of
from memworker.ingestion.readers.checked import ReadOptions
from memworker.ingestion.readers.encodings import TornStream
from memworker.ingestion.readers.objects import ObjectRows
from memworker.ingestion.readers.paths import STDIN, Source
from memworker.ingestion.readers.streams import byte_blocks
from memworker.ingestion.records import EXCERPT_CHARS
from memworker.paths import shown_name

_log = logging.getLogger(__name__)


def read_rows(source: Source, options: ReadOptions) -> Iterator[ObjectRows]:
    """Yield the row of a document, none if it is none. Raises InputError."""
    try:
        data = _data(source)
        kind = kind_of(source.path.removesuffix(f".{source.compression}")) or "plain"
        encoding = source.dialect.encoding or ""
        found = kinds.document(kind, data, options.extraction, encoding=encoding)
    except kinds.NoDocument as reason:
        if source.left_out is None:
            raise InputError(f"{source.told} is no document: {reason}") from None
        source.left_out.add(str(reason), source.path)
        return
    except (kinds.BadDocument, TornStream) as reason:
        raise InputError(f"{source.told}: {reason}") from None
    if found.note:
        _log.warning(
            "memworker: %s: front matter kept as text: %s", shown_name(source.told), found.note
        )
    fields, name = options.fields, shown_name(source.name or source.path)
    ours: dict[str, Any] = {"path": name, "size": len(data)}
    # Of several fields, or a template, the text of the document is the field `text`.
    text = fields.text if fields.composed is None else "text"
    row = kinds.beside(found.fields, ours, (text, "id"))
    row[text] = found.text
    if fields.id == "id" and fields.id_template is None:
        row["id"] = name
    yield ObjectRows(np.ones(1, np.int64), [row], lambda i: found.text[:EXCERPT_CHARS])


def _data(source: Source) -> bytes:
    pieces, size = [], 0
    for block in byte_blocks(source):
        pieces.append(block)
        size += len(block)
        if size > kinds.MAX_FILE_BYTES:
            raise kinds.too_large(size if source.path == STDIN else os.stat(source.path).st_size)
    return b"".join(pieces)
