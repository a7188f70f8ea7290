"""What is known of a folder's files: what the table holds of them, and what was read when.

Both are kept in SQLite, on the disk, for a folder may have millions of files. A stamp is a fact
of a file ("with this size, these times and this inode it had that hash"), true whatever became
of the run that noted it; losing them costs reading the files again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_FILE = "stamps.sqlite"
# A file may change within the same tick of its file system's clock after it was read. So a stamp
# is noted when the file had rested so long; FAT's clock has the longest ticks, of 2 s.
_REST_NS = 10 * 10**9
_SCHEMA = """
CREATE TABLE IF NOT EXISTS stamps (
    folder TEXT, path TEXT, stamp TEXT, hash TEXT, PRIMARY KEY (folder, path)
) WITHOUT ROWID;
"""
_HELD = """
CREATE TEMP TABLE held (path TEXT PRIMARY KEY, hash TEXT, state INTEGER) WITHOUT ROWID;
CREATE INDEX temp.held_hashes ON held (hash);
CREATE TEMP TABLE fresh (hash TEXT PRIMARY KEY) WITHOUT ROWID;
"""
# What became of a path on this pass: held ones are not met, met, met without a text, or gone.
_UNMET, _MET, _TEXTLESS, _NEW, _GONE = 0, 1, 2, 3, 4
_PAGE = 256


def stamp_of(facts: os.stat_result) -> str:
    """Write what changes whenever a file is written; nobody can set the time of the change."""
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"


class Catalogue:
    """What is known of one folder. Used by one thread at a time.

    Without a `state` folder stamps are neither read nor kept.
    """

    def __init__(self, state: Path | None, folder: str) -> None:
        self._folder = folder
        self._known = _opened(state / _FILE) if state is not None else _memory()
        self._known.executescript(_HELD)
        self._unsaved = 0

    def close(self) -> None:
        """Keep what was learnt."""
        with suppress(sqlite3.Error):
            self._known.commit()
        self._known.close()

    # What the table holds.

    def hold(self, rows: Iterable[tuple[str, str | None]]) -> None:
        """Note the path and the hash of rows; of several rows of one path any may have the hash."""
        self._known.executemany(
            "INSERT INTO held VALUES (?, ?, 0) ON CONFLICT (path) DO UPDATE"
            " SET hash = coalesce(excluded.hash, hash)",
            rows,
        )

    def see(self, path: str) -> tuple[bool, str | None, bool]:
        """Mark a path as there: whether the table holds it, its hash, and whether it was met."""
        row = self._one("SELECT hash, state FROM held WHERE path = ?", path)
        if row is None:
            self._known.execute("INSERT INTO held VALUES (?, NULL, ?)", (path, _NEW))
            return False, None, False
        if row[1] != _UNMET:
            return row[1] != _NEW, None, True
        self._mark(path, _MET)
        return True, None if row[0] is None else str(row[0]), False

    def miss(self, path: str) -> None:
        """Take back that a path was met."""
        self._mark(path, _UNMET)

    def textless(self, path: str) -> None:
        """Note that the file is there, and holds no text any more."""
        self._mark(path, _TEXTLESS)

    def spare(self, path: str) -> None:
        """Leave what is held of a path, and under it, as it is: it could not be looked at.

        No path is the folder itself.
        """
        if not path:
            self._known.execute(f"UPDATE held SET state = {_MET} WHERE state != {_NEW}")
            return
        # "0" is what follows "/" in order.
        self._known.execute(
            "UPDATE held SET state = ?2 WHERE state != ?3"
            " AND (path = ?1 OR (path > ?1 || '/' AND path < ?1 || '0'))",
            (path, _MET, _NEW),
        )

    def _mark(self, path: str, state: int) -> None:
        self._known.execute(
            "UPDATE held SET state = ? WHERE path = ? AND state != ?", (state, path, _NEW)
        )

    def same_content(self, hash: str) -> str | None:
        """Return a path that the table holds with this content, if there is one."""
        row = self._one("SELECT path FROM held WHERE hash = ?", hash)
        return None if row is None else str(row[0])

    def found(self, hash: str) -> None:
        """Note that a new file has this content."""
        self._known.execute("INSERT OR IGNORE INTO fresh VALUES (?)", (hash,))

    @property
    def held(self) -> int:
        """How many paths the table holds."""
        return self._count(f"SELECT count(*) FROM held WHERE state != {_NEW}")

    def unmet(self) -> Iterator[tuple[str, bool, bool]]:
        """Yield each path not met, whether a new file has its content, whether it lost its text.

        Paths may be marked meanwhile.
        """
        sql = (
            "SELECT path, fresh.hash IS NOT NULL, state FROM held LEFT JOIN fresh USING (hash)"
            f" WHERE state IN ({_UNMET}, {_TEXTLESS}) AND path > ? ORDER BY path LIMIT {_PAGE}"
        )
        last = ""
        while page := self._known.execute(sql, (last,)).fetchall():
            for path, moved, state in page:
                yield path, bool(moved), state == _TEXTLESS
            last = page[-1][0]

    def lose(self, path: str) -> None:
        """Mark a path as gone."""
        self._mark(path, _GONE)

    def gone(self) -> Iterator[list[str]]:
        """Yield the paths that are marked as gone, some at a time."""
        sql = (
            f"SELECT path FROM held WHERE state = {_GONE} AND path > ? ORDER BY path LIMIT {_PAGE}"
        )
        last = ""
        while page := [path for (path,) in self._known.execute(sql, (last,)).fetchall()]:
            yield page
            last = page[-1]

    # What was read when.

    def hash_at(self, path: str, stamp: str) -> str | None:
        """Return the hash that a file of this stamp had."""
        row = self._one(
            "SELECT hash FROM stamps WHERE folder = ? AND path = ? AND stamp = ?",
            self._folder,
            path,
            stamp,
        )
        return None if row is None else str(row[0])

    def note(self, path: str, facts: os.stat_result, hash: str) -> None:
        """Note the hash of a file that has rested; forget what was noted of one that has not."""
        if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < _REST_NS:
            self._known.execute(
                "DELETE FROM stamps WHERE folder = ? AND path = ?", (self._folder, path)
            )
        else:
            self._known.execute(
                "INSERT OR REPLACE INTO stamps VALUES (?, ?, ?, ?)",
                (self._folder, path, stamp_of(facts), hash),
            )
        self._unsaved += 1
        if self._unsaved >= 4096:
            self._known.commit()
            self._unsaved = 0

    def forget(self, path: str) -> None:
        """Forget a file that is gone."""
        self._known.execute(
            "DELETE FROM stamps WHERE folder = ? AND path = ?", (self._folder, path)
        )

    def _one(self, sql: str, *values: str) -> tuple[object, ...] | None:
        found: tuple[object, ...] | None = self._known.execute(sql, values).fetchone()
        return found

    def _count(self, sql: str) -> int:
        return int(self._known.execute(sql).fetchone()[0])


def _opened(path: Path) -> sqlite3.Connection:
    """Open the file of stamps; make it anew where it cannot be read."""
    for _ in range(2):
        try:
            known = sqlite3.connect(path, check_same_thread=False, timeout=60)
        except sqlite3.Error:
            break
        try:
            known.executescript(_SCHEMA)
            known.execute("SELECT count(*) FROM (SELECT * FROM stamps LIMIT 1)").fetchone()
            os.chmod(path, 0o600)
            return known
        except sqlite3.DatabaseError:
            known.close()
            path.unlink(missing_ok=True)
    return _memory()


def _memory() -> sqlite3.Connection:
    # An empty name: a file without one, which SQLite deletes at the end.
    known = sqlite3.connect("", check_same_thread=False)
    known.executescript(_SCHEMA)
    return known
