"""Facts about this machine, remembered in the user's cache: what was measured or tuned here."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from memworker.locks import draft_of


def recall(name: str) -> Any:
    """Give the value kept under `name` for this processor; None when there is none."""
    return _read(_file()).get(_key(name))


def keep(name: str, value: Any) -> None:
    """Keep a JSON value under `name` for this processor; a cache that cannot be written is none."""
    file = _file()
    with suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with draft_of(file) as draft:
            known = _read(file) | {_key(name): value}
            draft.write_text(json.dumps(known, indent=1))


def _file() -> Path:
    from platformdirs import user_cache_path

    override = os.environ.get("MEMWORKER_CACHE")
    return (Path(override) if override else user_cache_path("memworker")) / "machine.json"


def _read(file: Path) -> dict[str, Any]:
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
