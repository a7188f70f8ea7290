"""The access log: a line a request, of what it was and what became of it, never of its content."""

from __future__ import annotations

import sys
import time
from typing import IO

from memworker.errors import UsageError
from memworker.paths import PathGiven, used_path
from memworker.serve.asgi import AsgiScope
from memworker.serve.refusals import CODE

_STDERR = "-"


class AccessLog:
    """Writes to a file, or to stderr for "-"; raises UsageError where the file cannot be opened."""

    def __init__(self, file: PathGiven) -> None:
        self._path = None if str(file) == _STDERR else used_path(file, "the access log")
        self._file: IO[str] = sys.stderr
        self.reopen()

    def reopen(self) -> None:
        """Open the file anew: who moved the old one away wants another in its place."""
        if self._path is None:
            return
        try:
            opened = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UsageError(f"no access log in {self._path}: {error.strerror}.") from error
        if self._file is not sys.stderr:
            self._file.close()
        self._file = opened

    def write(self, scope: AsgiScope, route: str, status: int, seconds: float) -> None:
        """Write the line of a request: what stands there is none of what a client made up."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        client = scope.get("client")
        code = scope.get(CODE) or "-"
        line = f"{when} {client[0] if client else '-'} {scope['method']} {route} {status}"
        try:
            self._file.write(f"{line} {seconds * 1e3:.1f}ms {code}\n")
        except OSError:
            pass  # a full disk must not cost a reply
