"""Facts about this machine, remembered in the user's cache: what was measured or tuned here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memworker import processor
from memworker.errors import ModelUnavailable
from memworker.locks import Busy, FileLock, Unsupported
from memworker.models import cache_home, records

_LOCK_S = 5.0


def recall(name: str) -> Any:
    """Give the value kept under `name` for this processor; None when there is none."""
    return _read(_file()).get(_key(name))


def keep(name: str, value: Any) -> None:
    """Keep a JSON value under `name` for this processor; a cache that cannot be written is none."""
    change(name, lambda before: value)


def change(name: str, to: Callable[[Any], Any]) -> None:
    """Keep what `to` gives of the value kept so far; of several processes, one after the other.

    Where there is nothing to keep it in, `to` is called with None all the same.
    """
    file = _file()
    if file is None:
        to(None)
        return
    with _alone(file):
        known = _read(file)
        records.keep(file, json.dumps(known | {_key(name): to(known.get(_key(name)))}, indent=1))


def obstacle() -> str:
    """Say why nothing can be kept here; "" where it can."""
    file = _file()
    if file is None:
        return "there is no home folder; point MEMWORKER_CACHE at one"
    there = next(folder for folder in file.parents if folder.exists())
    return "" if os.access(there, os.W_OK) else f"{there} cannot be written"


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold off others who keep something, for a while; a cache without locks does without."""
    lock = FileLock(file.with_suffix(".lock"))
    try:
        records.make_private(file.parent)
        lock.acquire(_LOCK_S)
    except (Busy, Unsupported, OSError):
        yield
        return
    with lock:
        yield


def _file() -> Path | None:
    try:
        return cache_home() / "machine.json"
    except ModelUnavailable:
        return None


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _key(name: str) -> str:
    return f"{processor.name()} · {name}"
