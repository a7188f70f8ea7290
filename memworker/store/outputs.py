"""The one rule for files that are written where the user names them: no file of theirs is replaced.

A file that is there is replaced only if it is empty, or one of ours by what it holds, or if
its owner says so. What is read by the same run, and what is no regular file, is never
written to. A link is followed: the file that it leads to is written, and it stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from memworker.errors import StoreUnwritable, UsageError
from memworker.locks import draft_of
from memworker.paths import PathGiven, place, used_path

_WHAT = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_STDIN = "-"


@dataclass(frozen=True, slots=True)
class Output:
    """A file to be written: its path without links, and the option that names it.

    `ours` is true where nothing of anybody else's is there.
    """

    path: Path
    option: str
    ours: bool

    @classmethod
    def checked(
        cls,
        given: PathGiven,
        option: str,
        is_ours: Callable[[Path], bool],
        *,
        overwrite: bool | None = None,
    ) -> Output:
        """Check what is at the path: nothing, or a regular file that is ours or may be overwritten.

        `overwrite` is None where there is no such option. Raises UsageError, and
        StoreUnwritable where no file can be made.
        """
        named = used_path(given, option)
        if os.fspath(given) in (_STDIN, _STDIN.encode()):
            raise UsageError(f"{option} names a file; for one called -, give ./-")
        if os.fsdecode(given).endswith("/"):
            raise UsageError(f"{option} {os.fsdecode(given)} is a folder's name; name a file in it")
        facts = _facts(named)
        path = place(named)
        if facts is None:
            _check_folder(path, option)
            return cls(path, option, True)
        if not stat.S_ISREG(facts.st_mode):
            what = next((name for test, name in _WHAT if test(facts.st_mode)), "no file")
            raise UsageError(f"{option} {named} is {what}; name a regular file, or one to be made")
        ours = facts.st_size == 0 or is_ours(path)
        if not ours and not overwrite:
            instead = "" if overwrite is None else ", or add --overwrite (overwrite=True)"
            raise UsageError(
                f"{option} {named} is there already, and memworker did not make it; name another"
                f" file{instead}"
            )
        _check_folder(path, option)
        return cls(path, option, ours)

    @contextmanager
    def written(self) -> Iterator[BinaryIO]:
        """Open the file, which takes its name when it is whole. Raises OSError."""
        with draft_of(self.path, mode=0o666) as draft, draft.open("wb") as file:
            yield file

    def not_among(self, inputs: Iterable[str]) -> None:
        """Raise UsageError if one of the inputs, under whatever name, is this file."""
        facts = _facts(self.path)
        if facts is None:
            return
        for name in inputs:
            if _is_same(name, facts):
                shown = "standard input" if name == _STDIN else name
                raise UsageError(
                    f"{self.option} {self.path} is an input as well ({shown}), which would be"
                    " destroyed; name another file"
                )

    def not_with(self, other: Output) -> None:
        """Raise UsageError if both are the same file."""
        if self.path == other.path:
            raise UsageError(f"{self.option} and {other.option} are the same file, {self.path}")


def _facts(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreUnwritable(f"{path} cannot be looked at: {error.strerror}") from error


def _is_same(name: str, facts: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(0) if name == _STDIN else os.stat(name), facts)
    except OSError:
        return False  # reading it will say so


def _check_folder(path: Path, option: str) -> None:
    """Raise StoreUnwritable if there can be no file of this path."""
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise StoreUnwritable(f"{option} {path}: {folder} is no folder; name another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreUnwritable(
            f"{option} {path}: no file may be made in {folder}; change its mode, or name another"
        )
    if ".memworker" in path.parts and path.name != "rejects.jsonl":
        raise UsageError(
            f"{option} {path} is among what memworker keeps of a table; name a file elsewhere"
        )
    table = next((each for each in path.parents if each.name.endswith(".lance")), None)
    if table is not None and (table / "_versions").is_dir():
        raise UsageError(f"{option} {path} is within the table {table}; name a file elsewhere")
