"""Plain text, one text a line; a line of nothing but white space is no row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from memworker.ingestion.readers.checked import ReadOptions
from memworker.ingestion.readers.jsonl import excerpt, stream_faults
from memworker.ingestion.readers.lines import line_blocks
from memworker.ingestion.readers.objects import ObjectRows
from memworker.ingestion.readers.paths import Source


def read_rows(source: Source, options: ReadOptions) -> Iterator[ObjectRows]:
    """Yield the rows of a text file; its one field is the text, whatever its name."""
    name = options.fields.lone_text
    for block in line_blocks(source, options.batch_rows, options.max_line_bytes):
        faults = stream_faults(block, options)
        kept = [i for i, line in enumerate(block.lines) if i in faults or not _blank(line)]
        raw = [block.lines[i] for i in kept]
        rows = ObjectRows(
            np.asarray(kept, dtype=np.int64) + block.first,
            [{name: line.removesuffix(b"\r").decode(errors="surrogateescape")} for line in raw],
            partial(_shown, raw),
            {row: faults[i] for row, i in enumerate(kept) if i in faults},
            "is not valid UTF-8",
        )
        if kept:
            yield rows


def _shown(raw: list[bytes], i: int) -> str:
    return excerpt(raw[i])


def _blank(line: bytes) -> bool:
    return not line or line.isspace()
