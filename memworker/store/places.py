"""Where a database is: a directory of this machine, or a bucket; what differs is asked here.

Of a table in a directory all is kept beside it. In a bucket lie LanceDB's files and the locks
between machines. Journal, rejected rows and what else memworker keeps for itself lie in a folder
of the machine (`Bucket.state`): a line more of a journal would write the whole object anew, no row
depends on any of it, and it is for those who ran the job there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from memworker.errors import StoreError, UsageError
from memworker.paths import Bucket, Place, database_place
from memworker.store import bounded, objects
from memworker.store.objects import ObjectPath

Folder: TypeAlias = Path | ObjectPath
"""A folder of LanceDB's, or a file in it: on a disk, or in a bucket."""

BUCKET_KEEP = timedelta(hours=1)
"""No lock tells of who reads on another machine, as the lock ``read`` does on this one."""


def folder_of(db: Place) -> Folder:
    """Return the folder that LanceDB keeps a database in."""
    return ObjectPath(db) if isinstance(db, Bucket) else db


def table_folder(db: Place, name: str) -> Folder:
    """Return the folder that LanceDB keeps a table in."""
    return folder_of(db) / f"{name}.lance"


def state_home(db: Place) -> Path:
    """Return the folder of what memworker keeps for the tables of a database."""
    return db.state if isinstance(db, Bucket) else db / ".memworker"


def state_folder(db: Place, name: str) -> Path:
    """Return the folder of what memworker keeps for a table; it may not be there."""
    return state_home(db) / name


def is_there(db: Place) -> bool:
    """Tell whether there is a database; a bucket's path is one as soon as something is written."""
    return isinstance(db, Bucket) or db.is_dir()


def is_bucket(db: Place) -> bool:
    """Tell whether a database is in object storage."""
    return isinstance(db, Bucket)


def may_be_there(db: Place, name: str) -> bool:
    """Tell whether there may be a table; in a bucket opening it is what tells, in one request."""
    return isinstance(db, Bucket) or (db / f"{name}.lance").is_dir()


def dated(db: Place, name: str, state: Path) -> Folder:
    """Return a folder for our own files that is dated as the table's are."""
    return ObjectPath(db) / ".memworker" / name if isinstance(db, Bucket) else state


def kept_for(db: Place, keep: timedelta) -> timedelta:
    """Return how long versions stay at least: in a bucket, longer than reads elsewhere take."""
    return max(keep, BUCKET_KEEP) if isinstance(db, Bucket) else keep


def must_hold_to_conditions(db: Place) -> None:
    """Raise StoreUnwritable unless commits of two writers exclude each other there."""
    if isinstance(db, Bucket):
        objects.ensure_conditional(db)


def options_of(db: Place) -> dict[str, str]:
    """Return LanceDB's storage options. Raises UsageError for one that nothing reads."""
    if not isinstance(db, Bucket):
        return {}
    # LanceDB passes over what it does not know.
    objects.store_of(db)
    return dict(db.options)


def only_in_a_directory(db: Place, doing: str, instead: str) -> Path:
    """Return a directory. Raises UsageError for a bucket, saying what to do `instead`."""
    if isinstance(db, Bucket):
        raise UsageError(f"{doing} is for tables in a directory, and {db} is a bucket; {instead}")
    return db


def entries(folder: Folder) -> Iterator[Folder]:
    """Yield what is in a folder. Raises FileNotFoundError where a directory is not there."""
    yield from folder.iterdir()


def on_disk(path: Folder) -> Path:
    """Return a file of a directory. Raises StoreError for an object, which nothing here mends."""
    if isinstance(path, ObjectPath):
        raise StoreError(
            f"{path} is not what was written, and object storage keeps what it takes whole; look at"
            " who else writes into the bucket"
        )
    return path


def bytes_under(folder: Folder) -> int:
    """Return the size of all files in a folder, however deep."""
    if isinstance(folder, ObjectPath):
        return sum(each.st_size for each in folder.below())
    total = 0
    # A compaction elsewhere may remove files and folders while we look: os.walk passes over those.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def moving(*folders: Folder) -> Callable[[], object]:
    """Return what looks otherwise as long as a write into these folders is getting on."""
    local = [each for each in folders if isinstance(each, Path)]
    files = bounded.files_below(*local)
    if len(local) == len(folders):
        return files
    # Listing a bucket costs money; who sends a request spends processor time.
    return lambda: (files(), bounded.work_of_lance())


def as_json(db: Place) -> str | tuple[str, dict[str, str]]:
    """Return what names a place to a process of ours."""
    return (db.uri, dict(db.options)) if isinstance(db, Bucket) else str(db.absolute())


def from_json(named: str | tuple[str, dict[str, str]]) -> Place:
    """Return the place that `as_json` has named."""
    return Path(named) if isinstance(named, str) else database_place(*named)
