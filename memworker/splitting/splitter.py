"""A process that cuts texts, as those who read see it.

::

    texts ─► Arrow over a pipe ─► the process: words counted, texts cut ─► chunks, over a pipe

It has a core of its own where there is one. A process that dies is started again, and gets what
it had once more; a second death is an error.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker import interpreters
from memworker.chunking import Chunking
from memworker.errors import PoolError
from memworker.pool import Tokenization

_RUN = "from memworker.splitting.process import main; main()"
# What goes over the pipe at once; what comes back is about as much.
_BYTES_AT_ONCE = 4 << 20
_DEATHS = 2
_END_S = 5.0


class Splitter:
    """Cuts texts into chunks, in a process that begins with the first; a context of its own.

    One thread at a time. Without a `tokenization`, a word is a token.
    """

    def __init__(self, chunking: Chunking, tokenization: Tokenization | None) -> None:
        self._chunking, self._tokenization = chunking, tokenization
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Lock()
        self._closed = False

    def split(
        self, ids: pa.Array, texts: pa.Array, titles: pa.Array, markdown: pa.Array
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Cut texts: yield (the first text's row, chunks of it and some behind it), in order.

        The chunks have the columns text (the row in what was given), id, chunk, char_start,
        char_end, last_chunk, context and ids (its tokens', int32 each, or null). A text gives at
        least one, unless it is white space. Raises PoolError.
        """
        given = pa.RecordBatch.from_arrays(
            [ids, texts, titles, markdown], names=["id", "text", "title", "markdown"]
        )
        start = 0
        for end in _ends(texts):
            cut = self._asked(given.slice(start, end - start))
            place = cut.schema.get_field_index("row")
            yield start, cut.set_column(place, "row", pc.add(cut["row"], start))
            start = end

    def close(self) -> None:
        """End the process."""
        with self._closing:
            self._closed, process = True, self._process
            self._process = None
        if process is not None:
            _end(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _asked(self, given: pa.RecordBatch) -> pa.RecordBatch:
        for left in reversed(range(_DEATHS)):
            process = self._started()
            try:
                _send(process, given)
                with pa.ipc.open_stream(process.stdout) as answer:
                    cut: pa.RecordBatch = answer.read_next_batch()
                    # To its end, or the next answer would begin there.
                    for _ in answer:
                        pass
                    return cut
            except (OSError, ValueError, StopIteration, pa.ArrowException):
                if self._closed:
                    raise PoolError("the splitter was closed while it cut texts") from None
                code = _end(process)
                self._process = None
                if not left:
                    size = int(pc.sum(pc.binary_length(given["text"])).as_py() or 0)
                    raise PoolError(
                        f"the process that cuts texts into chunks ended with {code}, {_DEATHS}"
                        f" times, on {given.num_rows} texts of {size:,} bytes. Often that is too"
                        " little memory. Run the same command again: what is committed stays"
                    ) from None
        raise AssertionError("the last attempt returns or raises")

    def _started(self) -> subprocess.Popen[bytes]:
        with self._closing:
            if self._process is None:
                told = asdict(self._chunking), self._tokenization and asdict(self._tokenization)
                command = interpreters.command(_RUN, json.dumps(told, default=str))
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=interpreters.environment(TOKENIZERS_PARALLELISM="false"),
                )
            return self._process


def _ends(texts: pa.Array) -> list[int]:
    """Return where to part texts so that little goes over the pipe at once."""
    if not len(texts):
        return []
    behind = np.cumsum(np.asarray(pc.binary_length(texts), dtype=np.int64))
    parts = (behind - 1).clip(0) // _BYTES_AT_ONCE
    return [*(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(texts)]


def _send(process: subprocess.Popen[bytes], given: pa.RecordBatch) -> None:
    pipe: Any = process.stdin
    with pa.ipc.new_stream(pipe, given.schema) as stream:
        stream.write_batch(given)
    pipe.flush()


def _end(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:
            pass  # what it was to get is of no use to it
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
