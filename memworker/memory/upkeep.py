"""Keeps the table quick in the background: many small commits make many small files."""

from __future__ import annotations

import logging
import threading

from memworker.errors import MemworkerError
from memworker.store import Table

# A commit leaves a file; a search opens them all.
COMMITS_BETWEEN = 256

_log = logging.getLogger(__name__)


class Upkeep:
    """A thread, begun when it is first needed, that optimises after every so many commits."""

    def __init__(self, table: Table, commits_between: int = COMMITS_BETWEEN) -> None:
        self._name, self._tend = table.name, table.optimize
        self._between = commits_between
        self._commits = 0
        self._closing = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        """Count a commit; never waits for the upkeep itself."""
        with self._wake:
            self._commits += 1
            if self._commits < self._between or self._closing:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="memworker-upkeep", daemon=True
                )
                self._thread.start()
            self._wake.notify()

    def close(self, timeout_s: float | None = None) -> None:
        """Begin nothing more, and wait for what is under way."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._due():
            try:
                self._tend()
            except MemworkerError as error:
                _log.warning("upkeep of table %r failed: %s", self._name, error)

    def _due(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._commits >= self._between)
            self._commits = 0
            return not self._closing
