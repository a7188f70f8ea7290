"""The files of a folder, in order, and each read as it was at one moment."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from memworker.ingestion.documents.kinds import (
    MAX_FILE_BYTES,
    BadDocument,
    too_large,
)
from memworker.ingestion.documents.suffixes import kind_of
from memworker.ingestion.readers.folders import Folders, LeftOut, path_matches
from memworker.ingestion.sync.catalogue import stamp_of
from memworker.paths import shown_name

_TRIES = 5


class Vanished(Exception):
    """A file went after it was found."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of the folder: its path, its name within the folder as text, what is wrong with it."""

    path: str
    name: str
    fault: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which files of a folder are wanted: patterns of what to take, and of what to leave."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def passed_over(self, inside: str, is_folder: bool) -> str:
        """Return why a path within the folder is left out, or ""."""
        if any(_matches(inside, pattern, is_folder) for pattern in self.exclude):
            return "excluded"
        if is_folder or not self.include:
            return ""
        included = any(_matches(inside, pattern, is_folder) for pattern in self.include)
        return "" if included else "not included"


def files_of(
    root: str, chosen: Chosen, left_out: LeftOut, outputs: Sequence[Path], under: str = ""
) -> Iterator[FoundFile]:
    """Yield the documents under a folder, folder by folder; `under` names one within it."""
    before = len(root.rstrip("/")) + 1
    folders = Folders(
        left_out,
        outputs,
        lambda name: kind_of(name) is not None,
        lambda path, is_folder: chosen.passed_over(path[before:], is_folder),
    )
    for path, fault in folders.walk(os.path.join(root, under) if under else root):
        yield FoundFile(path, shown_name(path[before:]), fault)


def read_whole(path: str) -> tuple[bytes, os.stat_result]:
    """Return what a file held at one moment. Raises Vanished, BadDocument."""
    for _ in range(_TRIES):
        data, before, after = _read(path)
        if len(data) == before.st_size and stamp_of(before) == stamp_of(after):
            return data, before
    raise BadDocument(f"it was changed while it was read, {_TRIES} times; the next run reads it")


def is_there(root: str, name: str) -> bool | None:
    """Tell whether a file of this name is in the folder; None where that cannot be told."""
    for inside in {name, _unshown(name)}:
        try:
            if not stat.S_ISDIR(os.stat(os.path.join(root, inside)).st_mode):
                return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            return None
    return False


def place(root: str) -> tuple[int, int] | None:
    """Tell a folder from one that took its name; None where there is none."""
    try:
        facts = os.stat(root)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _read(path: str) -> tuple[bytes, os.stat_result, os.stat_result]:
    try:
        # Not to wait for a writer, if a pipe took the file's name.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb", buffering=0) as file:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise Vanished
            if before.st_size > MAX_FILE_BYTES:
                raise too_large(before.st_size)
            pieces = []
            # One byte more than it had: a file that grows is read again.
            left = before.st_size + 1
            while left > 0 and (piece := file.read(left)):
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces), before, os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Vanished from None
    except OSError as error:
        raise BadDocument(f"it cannot be read: {error.strerror or error}") from None


def _matches(inside: str, pattern: str, is_folder: bool) -> bool:
    """Hold a path against a pattern: a bare one is for names at any depth, ``x/`` for folders."""
    if pattern.endswith("/"):
        if not is_folder:
            return False
        pattern = pattern.rstrip("/")
    pattern = pattern.removeprefix("./")
    if "/" not in pattern:
        return fnmatchcase(os.path.basename(inside), pattern)
    return path_matches(inside.split("/"), pattern.lstrip("/").split("/"))


def _unshown(name: str) -> str:
    r"""Give a name back the bytes that stand in it as ``\xNN``."""
    parts = name.split("\\x")
    back = [parts[0]]
    for part in parts[1:]:
        digits = part[:2]
        try:
            code = int(digits, 16)
        except ValueError:
            code = 0
        raw = chr(0xDC00 + code) if code > 0x7F else f"\\x{digits}"
        back += (raw, part[2:])
    return "".join(back)
