"""The process that cuts texts: Arrow in on standard input, chunks out on standard output."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from memworker.chunking import Chunking
from memworker.failpoints import reach
from memworker.pool import TokenCounter, Tokenization
from memworker.splitting.cut import Cutter, Piece
from memworker.splitting.tokens import UnitTokens

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("chunk", pa.int32()),
        pa.field("char_start", pa.int64()),
        pa.field("char_end", pa.int64()),
        pa.field("last_chunk", pa.bool_()),
        pa.field("context", pa.string()),
        pa.field("ids", pa.binary()),
    ]
)


def main() -> None:
    """Answer until standard input ends, which it does with the process at its other end."""
    # Ctrl-C is for the parent to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints would stand among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    chunking, made = json.loads(sys.argv[1])
    tokenization = made and Tokenization(**{**made, "path": Path(made["path"])})
    cutter = cutter_of(Chunking(**chunking), tokenization)
    asked = os.fdopen(0, "rb", closefd=False)
    try:
        while asked.peek(1):
            with pa.ipc.open_stream(asked) as stream:
                batches = list(stream)
            reach("splitting")
            with pa.ipc.new_stream(answers, SCHEMA) as stream:
                stream.write_batch(cut_all(cutter, batches[0]))
            answers.flush()
    except BrokenPipeError:
        # The parent is gone; so is whoever would read of it.
        os._exit(1)


def cutter_of(chunking: Chunking, tokenization: Tokenization | None) -> Cutter:
    """Make what cuts texts; without a tokenization a word is a token."""
    counter = TokenCounter(tokenization) if tokenization else None
    return Cutter(UnitTokens(counter), chunking, counter.around if counter else 0)


def cut_all(cutter: Cutter, given: pa.RecordBatch) -> pa.RecordBatch:
    """Cut texts; the answer has a row a chunk."""
    columns: list[list[Any]] = [[] for _ in SCHEMA]
    parents, texts, titles, markdown = (given[name].to_pylist() for name in given.schema.names)
    cut = cutter.all_pieces(zip(texts, (title or "" for title in titles), markdown, strict=True))
    for row, (parent, text, pieces) in enumerate(zip(parents, texts, cut, strict=True)):
        for chunk in _chunks(pieces, parent, text, cutter.chunking.contextual):
            for column, value in zip(columns, (row, *chunk), strict=True):
                column.append(value)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _chunks(
    pieces: list[Piece], parent: str, text: str, contextual: bool
) -> Iterator[tuple[Any, ...]]:
    seen = dict[str, int]()
    for number, piece in enumerate(pieces):
        chunk = text[piece.start : piece.end]
        made_of = f"{len(parent)}:{parent}{len(piece.context)}:{piece.context}{chunk}"
        # Of equal chunks of one text the first, the second, ...
        again = seen[made_of] = seen.get(made_of, -1) + 1
        row_id = xxh3_128_hexdigest(f"{again}:{made_of}".encode())
        last = number == len(pieces) - 1
        context = piece.context if contextual else None
        yield row_id, chunk, number, piece.start, piece.end, last, context, piece.ids
