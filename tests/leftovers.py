"""What a test or a program of tests may leave: its temporary folder, and shared memory."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from memworker.locks import Scratch


def own_folder(parent: Path | None = None) -> Scratch:
    """Make a temporary folder; after a kill, the next to ask for one removes it."""
    return Scratch((parent or Path(tempfile.gettempdir())) / f"memworker-tests-{os.getuid()}")


def shared_memory() -> set[str]:
    """List what this project's processes could leave there: others use the folder meanwhile."""
    folder = Path("/dev/shm")
    names = ("*memworker*", "psm_*", "pym-*", "sem.*")
    # Folders are somebody's temporary ones: what is shared is a file.
    return {str(path) for name in names for path in folder.glob(name) if path.is_file()}


def shared_memory_left(before: set[str]) -> set[str]:
    """List what has come since and is neither gone by now nor used by others.

    Another suite, or another lane of this one, may run beside.
    """
    return {path for path in shared_memory() - before if not is_of_others(path)}


def is_of_others(path: str) -> bool:
    """Tell whether a file is gone by now, or in use by a process that is none of ours."""
    if not os.path.exists(path):
        return True
    me = psutil.Process()
    ours = {me.pid, *(child.pid for child in me.children(recursive=True))}
    others = (each for each in Path("/proc").glob("[0-9]*") if int(each.name) not in ours)
    return any(_uses(each, path) for each in others)


def _uses(process: Path, path: str) -> bool:
    with suppress(OSError):
        if any(os.readlink(fd) == path for fd in (process / "fd").iterdir()):
            return True
        return path in (process / "maps").read_text()
    return False
