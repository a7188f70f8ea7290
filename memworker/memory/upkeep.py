"""Keeps the table quick, and the process small, in the background.

Many small commits make many small files. And each frees memory, as upkeep does, that the C library
keeps for the next who asks, in as many heaps as there are threads: without end, as it looks for
hours, though less than half of it is in use. So it is given back to the system now and then.
"""

from __future__ import annotations

import logging
import threading
import time

from memworker import heap
from memworker.store import Table

# So many commits, or so many times as many rows, until the table is looked at.
COMMITS_BETWEEN = 16
_ROWS_AS_A_COMMIT = 64
# What is due is done step by step, with rests (store/maintenance.py); so often it is asked then.
_PAUSE_S = 1.0
# Giving memory back takes some milliseconds of one core.
_GIVE_BACK_S = 10.0

_log = logging.getLogger(__name__)


class BackgroundUpkeep:
    """A thread, begun when it is first needed, that tends the table after every so many commits."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._left = float(COMMITS_BETWEEN)
        self._closing = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def committed(self, rows: int) -> None:
        """Count a commit of so many rows; never waits for the upkeep itself."""
        with self._wake:
            self._left -= 1 + rows / _ROWS_AS_A_COMMIT
            if self._left > 0 or self._closing:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="memworker-upkeep", daemon=True)
                thread.start()
                self._thread = thread
            self._wake.notify()

    def close(self, timeout_s: float | None = None) -> None:
        """Begin no further step, and wait for the one under way."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        # A forgotten Memory may be collected in any thread, this one too.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        more, given_back_at = False, time.monotonic()
        while self._awaited(more):
            try:
                if self._table.maintenance.due():
                    self._table.maintenance.tend()
            except Exception as error:
                # No caller waits for this. A step that failed rests, and another is tried.
                _log.warning("upkeep of table %r failed: %s", self._table.name, error)
            more = self._more()
            if time.monotonic() - given_back_at >= _GIVE_BACK_S:
                heap.give_back()
                given_back_at = time.monotonic()

    def _awaited(self, more: bool) -> bool:
        with self._wake:
            if more:
                self._wake.wait_for(lambda: self._closing, _PAUSE_S)
            else:
                self._wake.wait_for(lambda: self._closing or self._left <= 0)
            self._left = float(COMMITS_BETWEEN)
            return not self._closing

    def _more(self) -> bool:
        """Tell whether there is a step to come."""
        try:
            return self._table.maintenance.needs().step is not None
        except Exception:
            return False  # told above; a later commit asks again
