"""The reject file: every row that was refused, with path, line and reason, as jsonl."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Self

import msgspec

from memworker.errors import RowRejected, StoreUnwritable
from memworker.ingestion.records import Reject
from memworker.ingestion.report import Counts
from memworker.locks import draft_of
from memworker.store import disk_errors

_SAFE = (
    "What was committed before is safe. Make room, or name another file with --rejects, and run"
    " the same command again"
)
_decode = msgspec.json.Decoder(Reject).decode


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
    """Written as rows are refused; created at the first one: no rejected rows, no file.

    What earlier runs have listed of other inputs stays: `is_read` tells of a path in the
    list whether this run reads it.
    """

    def __init__(self, path: Path, is_read: Callable[[str], bool]) -> None:
        self.path = path
        self.rows = 0
        self.kept = 0
        self._is_read = is_read
        self._file: IO[bytes] | None = None
        # The reading side and the committing side both refuse rows.
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the list should know."""
        if not (self.rows and self.kept):
            return ()
        return (
            f"{self.path} goes on to list {self.kept:,} rows of other inputs, which earlier runs"
            " refused.",
        )

    def add(self, rejects: Iterable[Reject]) -> None:
        """Append rows, one JSON object a line. Raises StoreUnwritable."""
        lines = [msgspec.json.encode(reject) + b"\n" for reject in rejects]
        if not lines:
            return
        with self._lock, disk_errors(self.path, _SAFE):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
                self._file = os.fdopen(os.open(self.path, flags, 0o600), "ab")
            self._file.writelines(lines)
            self._file.flush()
            self.rows += len(lines)

    def __enter__(self) -> Self:
        # What an earlier run listed of these inputs would be taken for this one's.
        with disk_errors(self.path, _SAFE):
            try:
                old = self.path.open("rb")
            except FileNotFoundError:
                return self
            with old:
                others = (line for line in old if self._is_of_others(line))
                first = next(others, None)
                if first is None:
                    self.path.unlink()
                    return self
                with draft_of(self.path) as draft, draft.open("wb") as new:
                    for line in chain([first], others):
                        new.write(line)
                        self.kept += 1
        return self

    def _is_of_others(self, line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and not self._is_read(_decode(line).path)
        except msgspec.MsgspecError:
            return False

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
