"""Rows that leave a damaged table, kept as JSON lines beside it: what of them can be read.

``DB/.memworker/TABLE/damaged/rows-vVERSION.jsonl`` has those whose text is sound, as
`memworker memory export` writes memories, so that `memworker memory import` can bring them
back. ``unsure-vVERSION.jsonl`` has the rest, for people to look at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from memworker.store import salvage
from memworker.store.damage import Damage, DamageKind
from memworker.store.durable import sync_path
from memworker.store.salvage import ADDRESS, FragmentPart
from memworker.store.schema import SCOPES

if TYPE_CHECKING:
    from lancedb.table import LanceTable

FOLDER = "damaged"
_TIMES = ("created_at", "updated_at", "expires_at", "superseded_at")
_COLUMNS = ("id", "text", "metadata", *SCOPES, *_TIMES)
# A row that is damaged in none of these still has its text and its scope.
_ALL = "row"
_TELLING = {"id", "text", "dedup_key", *SCOPES, _ALL}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The files with the rows kept (None: no row could be read), and the ids that could be read."""

    sound: Path | None
    unsure: Path | None
    ids: tuple[str, ...]


def keep(handle: LanceTable, damages: Sequence[Damage], folder: Path, version: int) -> KeptRows:
    """Write what can be read of damaged rows below `folder`, and force it to the disk."""
    # Of a file that is missing or cut off there is nothing to be read.
    gone = [damage for damage in damages if damage.kind is DamageKind.FILE]
    why = _reasons(damage for damage in damages if damage.kind is not DamageKind.FILE)
    for address in _reasons(gone):
        why.pop(address, None)
    aside = folder / FOLDER
    aside.mkdir(mode=0o700, exist_ok=True)
    writer = _AsideWriter(aside, version)
    addresses = np.array(sorted(why), np.uint64)
    with writer:
        for part in salvage.parts(handle, addresses, _COLUMNS, _AT_ONCE):
            for address, row in _rows(part).items():
                writer.write(row, why[address])
    for path in (writer.sound, writer.unsure):
        if path is not None:
            sync_path(path)
    sync_path(aside)
    sync_path(folder)
    return KeptRows(writer.sound, writer.unsure, tuple(writer.ids))


class _AsideWriter(ExitStack):
    """Writes two files, each made at its first row, under a name that no file has."""

    def __init__(self, folder: Path, version: int) -> None:
        super().__init__()
        self._folder, self._version = folder, version
        self._files: dict[str, IO[str]] = {}
        self.sound: Path | None = None
        self.unsure: Path | None = None
        self.ids: list[str] = []

    def write(self, row: Mapping[str, Any], damaged: Mapping[str, str]) -> None:
        """Write a row with what is wrong with it, by column."""
        if "id" in row:
            self.ids.append(row["id"])
        if not row:
            return
        told = dict(row) | {"damaged": dict(damaged)}
        sound = "id" in row and "text" in row and not _TELLING & _names(damaged)
        if "text" in told:
            told["memory"] = told.pop("text")
        file = self._file("rows" if sound else "unsure")
        file.write(json.dumps(told, ensure_ascii=False) + "\n")

    def _file(self, kind: str) -> IO[str]:
        if kind not in self._files:
            path, number = self._folder / f"{kind}-v{self._version}.jsonl", 1
            while path.exists():
                number += 1
                path = self._folder / f"{kind}-v{self._version}-{number}.jsonl"
            file = open(path, "x", encoding="utf-8", errors="surrogatepass", opener=_private)
            self._files[kind] = self.enter_context(file)
            if kind == "rows":
                self.sound = path
            else:
                self.unsure = path
        return self._files[kind]


def _rows(part: FragmentPart) -> dict[int, dict[str, Any]]:
    """Return the readable columns of each row, as JSON values."""
    found: dict[int, dict[str, Any]] = {address: {} for address in part.addresses.tolist()}
    for name in _COLUMNS:
        table = part.pieces.get(name, part.rows)
        for address, value in _values(table, name):
            if value is None or (value == "" and name in SCOPES):
                continue
            found[address][name] = value
    return found


def _values(table: Any, name: str) -> Iterator[tuple[int, Any]]:
    addresses = table[ADDRESS].to_pylist()
    if name in _TIMES:
        # A damaged time may be one that no datetime holds.
        stamps = table[name].cast("int64").to_pylist()
        yield from zip(addresses, map(_iso, stamps), strict=True)
    elif name == "metadata":
        yield from zip(addresses, map(_parsed, table[name].to_pylist()), strict=True)
    else:
        yield from zip(addresses, table[name].to_pylist(), strict=True)


def _iso(stamp: int | None) -> str | None:
    try:
        return None if stamp is None else (_EPOCH + timedelta(microseconds=stamp)).isoformat()
    except OverflowError:
        return None


def _parsed(value: str | None) -> Any:
    try:
        return None if value is None else json.loads(value)
    except ValueError:
        return value


def _names(damaged: Mapping[str, str]) -> set[str]:
    return {name for names in damaged for name in names.split(", ")}


def _reasons(damages: Iterable[Damage]) -> dict[int, dict[str, str]]:
    why: dict[int, dict[str, str]] = {}
    for damage in damages:
        for run in damage.rows:
            for address in run:
                why.setdefault(address, {})[damage.column or _ALL] = damage.why
    return why


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
