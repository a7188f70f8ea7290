"""The handle by which a `Table` reads and writes, opened anew where that frees what is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memworker.errors import MemworkerError

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_log = logging.getLogger(__name__)


class Handle:
    """A LanceTable, in whose place `renew` puts a fresh one; who reads by the old one goes on.

    LanceDB keeps what it has read of an index in memory, and the index's files open,
    until its cache is full: of indices too that were replaced and deleted. Their disk
    space is not free then, and a process that writes for days runs out of
    descriptors. A fresh handle has read nothing yet.
    """

    def __init__(self, table: LanceTable, open_again: Callable[[], LanceTable]) -> None:
        self._table, self._open_again = table, open_again

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def renew(self) -> None:
        """Open the table anew; where that fails, the handle there is goes on."""
        try:
            self._table = self._open_again()
        except MemworkerError as error:
            # What was done before is done; whoever reads next is told what is wrong.
            _log.warning("table %r could not be opened anew: %s", self._table.name, error)


def renew(handle: LanceTable | Handle) -> None:
    """Renew a handle that can be; one that somebody opened for a moment goes by itself."""
    if isinstance(handle, Handle):
        handle.renew()
