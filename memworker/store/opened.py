"""A table as its writers have it: LanceDB's handle, where its files are, and what it was then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import StoreError
from memworker.paths import Place
from memworker.store import bounded, places, spill
from memworker.store.lance import connect, explain, open_table
from memworker.store.lock import keep, state_dir
from memworker.store.places import Folder
from memworker.store.schema import read_field_metadata
from memworker.store.space import VectorSpace

if TYPE_CHECKING:
    from lancedb.table import LanceTable


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table that was opened: `space` and `identity` are those that it had then."""

    handle: LanceTable
    db: Place
    name: str
    space: VectorSpace
    identity: str

    @classmethod
    def of(cls, handle: LanceTable, db: Place) -> OpenTable:
        """Take a handle that LanceDB has given."""
        name = str(handle.name)
        return cls(handle, db, name, *read_field_metadata(handle.schema, name))

    @property
    def folder(self) -> Folder:
        """Where LanceDB keeps its files."""
        return places.table_folder(self.db, self.name)

    @property
    def state(self) -> Path:
        """Where we keep ours; it may not exist, for a table that is only read needs none."""
        return places.state_folder(self.db, self.name)

    def made_state(self) -> Path:
        """Make that folder, and return it. Raises StoreUnwritable."""
        return state_dir(self.db, self.name)

    @property
    def clock(self) -> Folder:
        """Where the clock is asked by which its files are dated; made, where it can be."""
        return places.dated(self.db, self.name, self.made_state())

    def again(self) -> LanceTable:
        """Open it by a handle that remembers nothing of what was read or written before."""
        return open_table(connect(self.db, writable=False), self.db, self.name)

    def newest(self, doing: str) -> int:
        """Return the newest version, of any writer. Raises StoreError."""
        try:
            return int(self.handle.version)
        except Exception as error:
            raise StoreError(explain(doing, error)) from error

    def run(self, write: Callable[[], Any], *folders: Folder) -> Any:
        """Run a write. One given up under way keeps the write locks until the process ends."""
        state = self.state
        moved = places.moving(*(folders or (self.folder,)), state / spill.FOLDER)
        return bounded.run(write, moved, partial(keep, state))

    def spilling(self) -> AbstractContextManager[None]:
        """Have LanceDB spill into the folder of the table's state meanwhile."""
        return spill.spilling_beside(self.made_state())
