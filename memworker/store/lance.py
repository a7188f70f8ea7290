"""The way into LanceDB: connecting, opening, and its errors in our words."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from traceback import clear_frames
from typing import TYPE_CHECKING

from memworker.diagnosis import told
from memworker.errors import MemworkerError, StoreError, TableNotFound, UsageError
from memworker.paths import DatabaseGiven, Place, database_place
from memworker.store import places
from memworker.store.light_import import without_rest_client
from memworker.store.lock import ensure_writable
from memworker.store.manifest import versions
from memworker.store.objects import refusal
from memworker.values import shown

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

# "\Z", not "$": the latter lets a final newline through.
_TABLE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
_ERRORS = (RuntimeError, ValueError, OSError, TypeError, KeyError, NotImplementedError)
# What another library's thread dies of, which LanceDB's binding hands on as it is.
_PANIC = "RustPanic"
# LanceDB keeps what it has read of every version and of every index, replaced ones too, until its
# caches are full: by default 1 GiB and 6 GiB of them, to which a process that writes for hours
# grows. The index of a million rows of 384 dimensions takes some 400 MB; what tells where a
# version's columns lie, some 16 kB a fragment. Who only writes needs none of it again: what
# fills the cache then are manifests, which grow with the fragments and are read once.
INDEX_CACHE_BYTES = 512 * 2**20
METADATA_CACHE_BYTES = 32 * 2**20
WRITERS_METADATA_CACHE_BYTES = 4 * 2**20
# A table whose versions come and go is found at the second or third look.
_OPENINGS = 5
# The second is said where a version is opened by its number, without its cause.
_GONE = ("no such file", "no longer exists")
_DAMAGE = ("corrupt file", "not appear to be a Lance file", "fill whole buffer", "Not found: ")
_CONFLICTS = ("commit conflict", "too many concurrent writers", "incompatible with concurrent")
_MORE_THREADS = 16
_LOG, _TOLD_BY_US = "LANCEDB_LOG", "warn,lance::dataset::optimize=error"
_RUST_SOURCE = re.compile(r",? /\S+\.rs:\d+:\d+")


def table_name(name: str) -> str:
    """Return `name` when it can name a table and a folder; raise UsageError otherwise."""
    if not isinstance(name, str) or not _TABLE_NAME.match(name) or name.endswith(".lance"):
        raise UsageError(
            f"{shown(name)} cannot name a table; use letters, digits, '_', '-' and '.', "
            "beginning with a letter, a digit or '_', at most 200"
        )
    return name


def database_path(db: DatabaseGiven, storage_options: Mapping[str, str] | None = None) -> Place:
    """Return the database's directory, whole and without links, or its place in a bucket.

    Raises UsageError for what cannot be one.
    """
    return database_place(db, storage_options)


def connect(
    db: Place,
    *,
    writable: bool,
    follow: bool = True,
    index_cache_bytes: int = INDEX_CACHE_BYTES,
    metadata_cache_bytes: int | None = None,
) -> LanceDBConnection:
    """Connect to a database. Tables opened through it see every commit of any process.

    Without `follow` they stay at the version that they have opened or made.
    """
    if writable:
        ensure_writable(db)
    elif not places.is_there(db):
        raise TableNotFound(
            f"there is no database directory {db}; check the path, or add something to it first"
        )
    _ensure_threads()
    # Lazy: importing lancedb takes up to 5 s, and not every command needs it.
    with _without_its_own_words(), without_rest_client():
        import lancedb

    with lance_errors(f"opening the database {db}"):
        caches = lancedb.Session(index_cache_bytes, metadata_cache_bytes or METADATA_CACHE_BYTES)
        return lancedb.connect(
            str(db),
            read_consistency_interval=timedelta(0) if follow else None,
            session=caches,
            storage_options=places.options_of(db) or None,
        )


@contextmanager
def _without_its_own_words() -> Iterator[None]:
    """Keep LanceDB's log of a compaction's conflict off stderr: callers report conflicts.

    It looks the variable up once, as it is imported. Set as C code sees it, as in spill.py, and
    not where the user has set it, or LanceDB was imported before.
    """
    if "lancedb" in sys.modules or _LOG in os.environ:
        yield
        return
    libc = ctypes.PyDLL(None)
    libc.setenv(_LOG.encode(), _TOLD_BY_US.encode(), 0)
    try:
        yield
    finally:
        libc.unsetenv(_LOG.encode())


@cache
def _ensure_threads() -> None:
    """Raise StoreError unless LanceDB's threads can be had, and a few of ours beside them.

    Where one is refused LanceDB breaks off or waits for ever. It starts one a
    core and a loop, and later some that read and write files.
    """
    enough = threading.Event()
    count = (os.cpu_count() or 1) + _MORE_THREADS
    threads = [threading.Thread(target=enough.wait) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise StoreError(f"LanceDB needs some {count} threads: {told(error)}") from error
    finally:
        enough.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def open_table(connection: LanceDBConnection, db: Place, name: str) -> LanceTable:
    """Open a table, or raise TableNotFound with the names of those there are."""
    if not places.may_be_there(db, name):
        raise TableNotFound(_no_table(db, name))
    with lance_errors(f"opening table {name!r} of {db}"):
        for left in reversed(range(_OPENINGS)):
            try:
                return connection.open_table(name)
            except (ValueError, RuntimeError) as error:
                # A create that was killed leaves a folder without a version.
                if not versions(places.table_folder(db, name)):
                    raise TableNotFound(_no_table(db, name)) from error
                # A clean-up may have removed the version just when it was found.
                if not left or not is_gone(error):
                    raise
    raise AssertionError("the last attempt returns or raises")


def table_names(db: DatabaseGiven) -> list[str]:
    """Return the names of the tables in a database, sorted."""
    there = places.folder_of(database_path(db)).glob("*.lance")
    return sorted(path.name.removesuffix(".lance") for path in there)


def is_gone(error: BaseException) -> bool:
    """Tell whether a read failed since a file of its version is not there any more."""
    found: BaseException | None = error
    while found is not None:
        text = str(found).lower()
        if ("not found" in text and ".lance" in text) or any(sign in text for sign in _GONE):
            return True
        found = found.__cause__
    return False


@contextmanager
def lance_errors(doing: str) -> Iterator[None]:
    """Raise what LanceDB and Arrow raise as StoreError, saying what was being done."""
    try:
        yield
    except MemworkerError:
        raise
    except Exception as error:
        if not isinstance(error, _ERRORS) and type(error).__name__ != _PANIC:
            raise
        forget_frames(error)
        raise StoreError(explain(doing, error)) from error
    except BaseException as error:
        # How a panic of LanceDB's Rust arrives; its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        forget_frames(error)
        raise StoreError(f"{doing} failed: LanceDB broke off: {error}") from error


def forget_frames(error: BaseException) -> None:
    """Clear the local variables of a caught error's frames; its traceback keeps their lines.

    LanceDB's hold the future that holds the error, a cycle; and ours hold the rows.
    """
    clear_frames(error.__traceback__)


def is_commit_conflict(error: BaseException) -> bool:
    """Tell whether another writer's commit came first, so that trying again can help."""
    text = str(error).lower()
    return any(sign in text for sign in _CONFLICTS)


def explain(doing: str, error: BaseException) -> str:
    """Say what happened in a line, as StoreError does."""
    if isinstance(error, MemworkerError):
        return str(error)
    text = " ".join(str(error).split())
    if "No space left on device" in text or "os error 28" in text:
        return f"the disk is full: {doing} failed; free some space and run the same command again"
    if "object of size 0 bytes" in text:
        return (
            f"{doing} failed: its newest version file is empty, as a power loss leaves it; "
            "`memworker table repair` goes back to the version before"
        )
    hint = "; `memworker table verify` says if and what is damaged" if is_damage(error) else ""
    return f"{doing} failed: {brief(error)}{hint}"


def is_damage(error: BaseException) -> bool:
    """Tell whether an error may come from a file whose content is not what was written."""
    found: BaseException | None = error
    while found is not None:
        text = str(found)
        if type(found).__name__ == _PANIC or any(sign in text for sign in _DAMAGE):
            return True
        found = found.__cause__
    return False


def brief(error: BaseException) -> str:
    """Say in some words what LanceDB or Arrow raised, without where in their source."""
    if type(error).__name__ == _PANIC:
        return "LanceDB broke off, as it does at a damaged file and where the disk fails"
    text = " ".join(str(error).split())
    if answered := refusal(text):
        return answered
    # Nested causes can run to kilobytes.
    return f"{type(error).__name__}: {_RUST_SOURCE.sub('', text)[:400]}"


def _no_table(db: Place, name: str) -> str:
    names = table_names(db)
    there = ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "none"
    return f"there is no table {name!r} in {db}; tables there: {there}"
