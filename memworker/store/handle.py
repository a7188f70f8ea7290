"""The handle by which a `Table` reads and writes, opened anew where that frees what is gone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memworker.errors import MemworkerError
from memworker.store.snapshot import Snapshot

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

_log = logging.getLogger(__name__)

OpenAgain = Callable[[], tuple["LanceDBConnection", "LanceTable"]]


class Handle:
    """A LanceTable, in whose place `renew` puts a fresh one; who reads by the old one goes on.

    LanceDB keeps what it has read of an index in memory, and the index's files open,
    until its cache is full: of indices too that were replaced and deleted. Their disk
    space is not free then, and a process that writes for days runs out of
    descriptors. A fresh handle has read nothing yet.
    """

    def __init__(
        self, connection: LanceDBConnection, table: LanceTable, open_again: OpenAgain
    ) -> None:
        self._connection, self._table, self._open_again = connection, table, open_again
        self._mutex = threading.Lock()
        self._snapshot: Snapshot | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def newest(self) -> Snapshot:
        """Return the newest version; the same object until another one is committed.

        Opening a version takes half a millisecond, looking which is the newest a fifth.
        """
        version = int(self._table.version)
        with self._mutex:
            if self._snapshot is None or self._snapshot.version != version:
                # Of the same connection, which has read the indices already.
                table = self._connection.open_table(self._table.name, version=version)
                self._snapshot = Snapshot(table, version)
            return self._snapshot

    def drop(self, snapshot: Snapshot) -> None:
        """Open a version anew when it is asked for next: this one could not be read."""
        with self._mutex:
            if self._snapshot is snapshot:
                self._snapshot = None

    def renew_as(self, open_again: OpenAgain) -> None:
        """Renew it, now and from now on, in another way."""
        self._open_again = open_again
        self.renew()

    def renew(self) -> None:
        """Open the table anew; where that fails, keep the present handle."""
        try:
            fresh = self._open_again()
        except MemworkerError as error:
            # The commit before this stands; the next read raises what is wrong.
            _log.warning("table %r could not be opened anew: %s", self._table.name, error)
            return
        with self._mutex:
            (self._connection, self._table), self._snapshot = fresh, None


def renew(handle: LanceTable | Handle) -> None:
    """Renew a `Handle`; a LanceTable opened for a moment needs no renewal."""
    if isinstance(handle, Handle):
        handle.renew()
