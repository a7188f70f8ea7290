"""What of folders and globs is an input: found in order; what is left out is kept, with its reason.

Left out are hidden and temporary names, tables, what other programs note beside their data,
and names that tell no format; lists of rejected rows are told when they are read. Links to
folders are followed, each folder once. What could not be read costs one refused row.
"""

from __future__ import annotations

import glob
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from memworker.paths import shown_name

_NAMES_TOLD = 10
_TEMPORARY = frozenset(("_temporary", "__MACOSX", "lost+found"))
_TEMPORARY_ENDS = ("~", ".tmp", ".part", ".partial", ".crdownload", ".swp")
_NOTES = "notes that another program keeps beside its data"
_LOGS = frozenset(("_delta_log",))


@dataclass(slots=True)
class LeftOut:
    """How many names were found and not read, by reason, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMES_TOLD:
            names.append(name)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def told(self, what: str = "Left out") -> str:
        """Describe how many were left out and why, with up to ten names in all; "" if none was."""
        if not self.names:
            return ""
        each = max(1, _NAMES_TOLD // len(self.names))
        parts = []
        for reason, names in self.names.items():
            count = self.counts[reason]
            more = ", …" if count > each else ""
            parts.append(f"{count:,} {reason} ({', '.join(names[:each])}{more})")
        return shown_name(f"{what}: {'; '.join(parts)}")


class Folders:
    """Walks folders; of what they hold, `wanted` tells which names are inputs.

    `passed_over` gives the reason why a path (and whether it is a folder) is left out, or "".
    """

    def __init__(
        self,
        left_out: LeftOut,
        outputs: Sequence[Path],
        wanted: Callable[[str], bool],
        passed_over: Callable[[str, bool], str] | None = None,
    ) -> None:
        self._left_out, self._wanted = left_out, wanted
        self._more = passed_over
        self._outputs = {os.path.realpath(path) for path in outputs}
        self._output_names = {os.path.basename(path) for path in self._outputs}
        self._seen: set[tuple[int, int]] = set()
        # Which of the files of folders a pattern means; all where it is None.
        self._chosen: Callable[[str], bool] | None = None

    def under(self, folder: str) -> list[tuple[str, str]]:
        """List the files under a folder, each with what keeps it from being read, or ""."""
        return list(self.walk(folder))

    def walk(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield what `under` lists, folder by folder."""
        self._seen.clear()
        if _is_table(folder):
            self._left_out.add("tables of a database", folder)
            return
        yield from self._walk(folder)

    def matching(self, pattern: str) -> list[tuple[str, str]]:
        """List the files that a glob matches; with ``**`` those of a folder match themselves."""
        if "**" in pattern:
            return self._recursive(pattern)
        found = []
        for name in sorted(glob.glob(pattern)):
            if os.path.isdir(name):
                found += self.under(name)
            else:
                found += self._file(name, os.path.basename(name))
        return found

    def _recursive(self, pattern: str) -> list[tuple[str, str]]:
        """Walk what ``**`` stands for: glob would follow links round and round."""
        parts = pattern.split("/")
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = "/".join(parts[:fixed])
        start = base or ("/" if pattern.startswith("/") else ".")
        before = len(start.rstrip("/")) + 1
        self._seen.clear()
        self._chosen = lambda path: path_matches(path[before:].split("/"), parts[fixed:])
        try:
            here = os.path.isdir(start) and not _is_table(start)
            found = list(self._walk(start)) if here else []
        finally:
            self._chosen = None
        return found if start != "." else [(path.removeprefix("./"), why) for path, why in found]

    def _walk(self, folder: str) -> Iterator[tuple[str, str]]:
        # Files before folders, each sorted; not by recursion, for folders may be nested deeply.
        waiting = [folder]
        while waiting:
            inside = waiting.pop()
            folders: list[str] = []
            yield from self._listed(inside, folders)
            waiting += reversed(folders)

    def _listed(self, folder: str, folders: list[str]) -> Iterator[tuple[str, str]]:
        """Yield the files of one folder, and add the folders in it to `folders`."""
        try:
            facts = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield folder, f"the folder cannot be read: {error.strerror}"
            return
        if (facts.st_dev, facts.st_ino) in self._seen:
            self._left_out.add("read already, through another link", folder)
            return
        self._seen.add((facts.st_dev, facts.st_ino))
        notes = _notes_of_others({entry.name for entry in entries}, folder)
        for entry in entries:
            is_folder = _is_folder(entry)
            if reason := self._passed_over(entry, notes) or self._asked(entry.path, is_folder):
                self._left_out.add(reason, entry.path)
            elif is_folder:
                folders.append(entry.path)
            else:
                yield from self._file(entry.path, entry.name)

    def _asked(self, path: str, is_folder: bool) -> str:
        return self._more(path, is_folder) if self._more is not None else ""

    def _passed_over(self, entry: os.DirEntry[str], notes: frozenset[str]) -> str:
        if entry.name.startswith("."):
            return "hidden"
        if entry.name.endswith(_TEMPORARY_ENDS):
            return "temporary"
        if entry.name in notes:
            return _NOTES
        return _folder_of_others(entry.path, entry.name)

    def _file(self, path: str, name: str) -> list[tuple[str, str]]:
        if self._chosen is not None and not self._chosen(path):
            return []
        if not self._wanted(name):
            self._left_out.add("whose suffix names no format", path)
            return []
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            why = "a link to nothing" if os.path.islink(path) else str(error.strerror)
            return [(path, f"the file cannot be read: {why}")]
        if not stat.S_ISREG(mode):
            self._left_out.add("no files but pipes, sockets or devices", path)
            return []
        if name in self._output_names and os.path.realpath(path) in self._outputs:
            self._left_out.add("written by this run itself", path)
            return []
        if not os.access(path, os.R_OK):
            return [(path, "the file may not be read by this user")]
        return [(path, "")]


def path_matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether the parts of a path are those of a pattern; ``**`` stands for any number."""
    if not pattern or not parts:
        return not parts and all(part in ("**", "") for part in pattern)
    if pattern[0] == "**":
        return path_matches(parts, pattern[1:]) or path_matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and path_matches(parts[1:], pattern[1:])


def _folder_of_others(path: str, name: str) -> str:
    """Return what kind of folder this is if its files are no inputs, else ""."""
    if name in _TEMPORARY:
        return "temporary"
    if name in _LOGS:
        return "logs of a table"
    return "tables of a database" if _is_table(path) else ""


def _is_table(folder: str) -> bool:
    return folder.rstrip("/").endswith(".lance") and os.path.isdir(
        os.path.join(folder, "_versions")
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _notes_of_others(names: set[str], folder: str) -> frozenset[str]:
    """Name what of a folder that Hugging Face's `save_to_disk` wrote is not its data."""
    notes = names & {"dataset_infos.json", "dataset_dict.json"}
    if {"state.json", "dataset_info.json"} <= names:
        notes |= {"state.json", "dataset_info.json"}
        # What its transformations cached lies beside, and is no part of the data set.
        with suppress(OSError, ValueError, KeyError, TypeError):
            with open(os.path.join(folder, "state.json"), encoding="utf-8") as file:
                files = {each["filename"] for each in json.load(file)["_data_files"]}
            notes |= {name for name in names - files if name.endswith(".arrow")}
    return frozenset(notes)
