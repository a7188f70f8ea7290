"""The reject file: every row that was refused, with path, line and reason, as jsonl."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from memworker.ingest.records import Reject


class RejectFile:
    """Written as rows are refused; made at the first one, so that no news leave no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._file: IO[bytes] | None = None
        # The reading side and the committing side both refuse rows.
        self._lock = threading.Lock()

    def add(self, rejects: Iterable[Reject]) -> None:
        """Append rows, one JSON object a line."""
        lines = [msgspec.json.encode(reject) + b"\n" for reject in rejects]
        if not lines:
            return
        with self._lock:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                self._file = os.fdopen(fd, "wb")
            self._file.writelines(lines)
            self._file.flush()
            self.rows += len(lines)

    def __enter__(self) -> Self:
        # A list left by an earlier run would be taken for this one's.
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
