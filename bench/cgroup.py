"""Memory cgroups made for a child: a job in a small one shows whether it keeps its word."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memworker.pool import memory_groups

_EMPTY_S = 5.0


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup, and the names of its files."""

    folder: Path
    limit_file: str
    peak_file: str

    def join(self) -> None:
        """Move this process into it; for a child between fork and exec."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak_bytes(self) -> int | None:
        """The most that was ever charged, pages of files included; None where none tells."""
        try:
            return int((self.folder / self.peak_file).read_text())
        except (OSError, ValueError):
            return None


@contextlib.contextmanager
def limited(*limits: int | None) -> Iterator[Group | None]:
    """Make nested cgroups with these memory limits, outermost first, and give the innermost.

    Gives None where none can be made: no cgroups here, or no right to make them.
    """
    made: list[Group] = []
    try:
        with contextlib.suppress(OSError):
            for limit in limits:
                made.append(_made(made[-1].folder if made else None, limit))
        yield made[-1] if len(made) == len(limits) else None
    finally:
        for group in reversed(made):
            _remove(group.folder)


def _made(parent: Path | None, limit: int | None) -> Group:
    name = f"memworker-{uuid.uuid4().hex[:12]}"
    failed: OSError = FileNotFoundError("no cgroup for memory is mounted")
    for above in [parent] if parent else _candidates():
        try:
            return _made_in(above, name, limit)
        except OSError as error:
            failed = error
    raise failed


def _candidates() -> Sequence[Path]:
    # Version 2 lets no group have both processes and limited children, save the root.
    groups = list(memory_groups())
    return [*groups[-1:], *groups]


def _made_in(above: Path, name: str, limit: int | None) -> Group:
    folder = above / name
    if (above / "cgroup.controllers").exists():
        (above / "cgroup.subtree_control").write_text("+memory")
        group = Group(folder, "memory.max", "memory.peak")
    else:
        group = Group(folder, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
    folder.mkdir()
    try:
        if limit is not None:
            (folder / group.limit_file).write_text(str(limit))
        elif not (folder / group.limit_file).exists():
            raise FileNotFoundError(f"{folder} has no {group.limit_file}")
    except OSError:
        folder.rmdir()
        raise
    return group


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _EMPTY_S
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            # The last process may be about to end.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
