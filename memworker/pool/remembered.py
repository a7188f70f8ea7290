"""Facts about this machine, remembered in the user's cache: what was measured or tuned here."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from memworker.errors import ModelUnavailable
from memworker.models import cache_home, records


def recall(name: str) -> Any:
    """Give the value kept under `name` for this processor; None when there is none."""
    return _read(_file()).get(_key(name))


def keep(name: str, value: Any) -> None:
    """Keep a JSON value under `name` for this processor; a cache that cannot be written is none."""
    file = _file()
    if file is not None:
        records.keep(file, json.dumps(_read(file) | {_key(name): value}, indent=1))


def obstacle() -> str:
    """Say why nothing can be kept here; "" where it can."""
    file = _file()
    if file is None:
        return "there is no home folder; point MEMWORKER_CACHE at one"
    there = next(folder for folder in file.parents if folder.exists())
    return "" if os.access(there, os.W_OK) else f"{there} cannot be written"


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
    return f"{_processor()} · {name}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
