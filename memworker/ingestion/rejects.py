"""The reject file: every row that was refused, with path, line and reason, as jsonl."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import msgspec

from memworker.errors import RowRejected, StoreUnwritable
from memworker.ingestion.records import Reject
from memworker.ingestion.report import Counts
from memworker.store import disk_errors

_SAFE = (
    "What was committed before is safe. Make room, or name another file with --rejects, and run"
    " the same command again"
)


@dataclass(frozen=True, slots=True)
class Refusals:
    """Where a job's refused rows go: counted, listed in a file, and the first may end the job."""

    counts: Counts
    file: RejectFile
    stop_at_first: bool = False

    def add(self, rejects: Sequence[Reject]) -> None:
        """Count and list rows. Raises StoreUnwritable; RowRejected where one is too many."""
        self.counts.add(rejected=len(rejects))
        self.list(rejects)

    def list(self, rejects: Sequence[Reject]) -> None:
        """List rows that count as something else. Raises as `add` does."""
        self.file.add(rejects)
        if rejects and self.stop_at_first:
            first = rejects[0]
            raise RowRejected(
                f"{first.path}:{first.line}: {first.reason}. Mend the row, or leave out"
                " --on-error stop to have such rows set aside."
            )


class RejectFile:
    """Written as rows are refused; made at the first one, so that no news leave no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._file: IO[bytes] | None = None
        # The reading side and the committing side both refuse rows.
        self._lock = threading.Lock()

    def add(self, rejects: Iterable[Reject]) -> None:
        """Append rows, one JSON object a line. Raises StoreUnwritable."""
        lines = [msgspec.json.encode(reject) + b"\n" for reject in rejects]
        if not lines:
            return
        with self._lock, disk_errors(self.path, _SAFE):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                self._file = os.fdopen(fd, "wb")
            self._file.writelines(lines)
            self._file.flush()
            self.rows += len(lines)

    def __enter__(self) -> Self:
        # A list left by an earlier run would be taken for this one's.
        with disk_errors(self.path, _SAFE):
            self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._file is None:
            return
        try:
            with disk_errors(self.path, _SAFE):
                self._file.close()
        except StoreUnwritable:
            # The error that ended the run is the one to be told.
            if error is None:
                raise
