"""What becomes of documents whose files are gone: looked for once more, then removed or counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memworker.errors import InputError
from memworker.ingestion.sync.catalogue import Catalogue
from memworker.ingestion.sync.looking import is_there, place
from memworker.ingestion.sync.outcome import FileCounts
from memworker.paths import shown_name

if TYPE_CHECKING:
    from memworker.ingestion.sync.asked import FolderJob

# So many documents do not vanish at once but with their disk.
_MANY = 100


@dataclass(frozen=True, slots=True)
class Removal:
    """What becomes of documents whose files are gone."""

    delete: bool = False
    excluded_too: bool = False
    allow_empty: bool = False
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """How many names the table holds and the folder does not; some came back under another."""

    count: int
    moved: int

    @classmethod
    def of(cls, job: FolderJob, catalogue: Catalogue, counts: FileCounts) -> Gone:
        """Look again at each: a file that is there and only left out is not gone."""
        count = moved = 0
        for name, has_moved, textless in catalogue.unmet():
            sure = textless or job.removal.excluded_too or is_there(job.root, name) is False
            if not sure:
                counts.kept += 1
                continue
            catalogue.lose(name)
            count += 1
            moved += has_moved
        return cls(count, moved)

    def check(self, job: FolderJob, catalogue: Catalogue, counts: FileCounts) -> None:
        """Raise InputError where so much is gone that something else must have happened."""
        lost, held, removal = self.count - self.moved, catalogue.held, job.removal
        root = shown_name(job.root)
        if removal.most is not None and self.count > removal.most:
            raise InputError(
                f"{self.count:,} documents of {root} are gone, more than the {removal.most:,}"
                " of --max-delete (max_delete=); none was removed"
            )
        if removal.allow_empty or lost < held:
            return
        if not counts.files or held > _MANY:
            raise InputError(
                f"none of the {held:,} documents that the table holds of {root} is there any more;"
                " none was removed. Is its disk mounted? If they are really gone, say"
                " --allow-empty (allow_empty=True)"
            )

    def counted(self, counts: FileCounts) -> None:
        """Count what was removed, or would be."""
        counts.moved = min(self.moved, counts.added)
        counts.added -= counts.moved
        counts.removed = self.count - counts.moved


def must_be_at(root: str, before: tuple[int, int] | None) -> None:
    """Raise InputError where another folder stands in the place of the one that was looked at."""
    if place(root) != before:
        raise InputError(
            f"the folder {shown_name(root)} was replaced while it was looked at: is its disk still"
            " mounted? Nothing was removed; what was committed is safe. Run the command again"
        )
