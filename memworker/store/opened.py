"""A table as its writers have it: LanceDB's handle, where its files are, and what it was then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import StoreError
from memworker.store import bounded, spill
from memworker.store.lance import connect, explain, open_table
from memworker.store.lock import keep, state_dir
from memworker.store.schema import read_field_metadata
from memworker.store.space import VectorSpace

if TYPE_CHECKING:
    from lancedb.table import LanceTable


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table that was opened: `space` and `identity` are those that it had then."""

    handle: LanceTable
    db: Path
    name: str
    space: VectorSpace
    identity: str

    @classmethod
    def of(cls, handle: LanceTable, db: Path) -> OpenTable:
        """Take a handle that LanceDB has given."""
        name = str(handle.name)
        return cls(handle, db, name, *read_field_metadata(handle.schema, name))

    @property
    def folder(self) -> Path:
        """Where LanceDB keeps its files."""
        return self.db / f"{self.name}.lance"

    @property
    def state(self) -> Path:
        """Where we keep ours; it may not exist, for a table that is only read needs none."""
        return self.db / ".memworker" / self.name

    def made_state(self) -> Path:
        """Make that folder, and return it. Raises StoreUnwritable."""
        return state_dir(self.db, self.name)

    def again(self) -> LanceTable:
        """Open it by a handle that remembers nothing of what was read or written before."""
        return open_table(connect(self.db, writable=False), self.db, self.name)

    def newest(self, doing: str) -> int:
        """Return the newest version, of any writer. Raises StoreError."""
        try:
            return int(self.handle.version)
        except Exception as error:
            raise StoreError(explain(doing, error)) from error

    def run(self, write: Callable[[], Any], *folders: Path) -> Any:
        """Run a write. One given up under way keeps the write locks until the process ends."""
        state = self.made_state()
        moved = bounded.files_below(*(folders or (self.folder,)), state / spill.FOLDER)
        return bounded.run(write, moved, partial(keep, state))

    def spilling(self) -> AbstractContextManager[None]:
        """Have LanceDB spill into the folder of the table's state meanwhile."""
        return spill.spilling_beside(self.made_state())
