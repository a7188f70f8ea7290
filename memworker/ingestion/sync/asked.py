"""What is asked for a folder: where it is, what of it is read, what is removed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memworker import values
from memworker.errors import InputNotFound, UsageError
from memworker.ingestion.job import Target
from memworker.ingestion.readers.folders import LeftOut
from memworker.ingestion.rejects import RejectFile
from memworker.ingestion.sync.looking import Chosen, FoundFile, files_of
from memworker.ingestion.sync.planning import Naming, Reading
from memworker.ingestion.sync.removal import Removal
from memworker.paths import shown_name
from memworker.store import (
    Output,
)


@dataclass(frozen=True, slots=True)
class FolderJob:
    """A folder and what is asked for it; `root` is its path as it is used."""

    root: str
    naming: Naming
    chosen: Chosen
    reading: Reading
    removal: Removal
    target: Target
    listed: Output

    def reject_file(self) -> RejectFile:
        """Give the list of refused files; what it says of others stays."""
        root = shown_name(self.root)
        return RejectFile(
            self.listed.path, lambda path: path == root or path.startswith(f"{root}/")
        )

    def files(self, left_out: LeftOut) -> Iterator[FoundFile]:
        """Yield the folder's files. Raises InputNotFound, UsageError where it is no folder."""
        if not os.path.isdir(self.root):
            if os.path.lexists(self.root):
                raise UsageError(f"{shown_name(self.root)} is no folder; ingest reads single files")
            raise InputNotFound(
                f"there is no folder {shown_name(self.root)}. Nothing was removed from the table."
            )
        outputs = [self.listed.path] if self.listed.ours else []
        return files_of(self.root, self.chosen, left_out, outputs)


def naming_of(root: str, name: str | None) -> Naming:
    if name is None:
        return Naming(shown_name(root))
    if not isinstance(name, str) or not name.strip("/ ") or shown_name(name) != name:
        raise UsageError(f"a folder's name (--name) is a text such as 'notes', not {name!r}")
    return Naming(name, f"{name.rstrip('/')}/")


def patterns_of(option: str, given: Sequence[str]) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.strip("/"):
            raise UsageError(f"--{option} takes a pattern such as '*.md', not {pattern!r}")
    return patterns


def most_of(given: int | None) -> int | None:
    found = None if given is None else values.whole(given)
    if given is not None and (found is None or found < 0):
        raise UsageError(f"--max-delete (max_delete=) is a whole number, not {values.shown(given)}")
    return found
