"""What the control groups of this process allow: memory and cores.

::

    /proc/self/cgroup     which group of each hierarchy      0::/kubepods/pod7/app
    /proc/self/mountinfo  where the hierarchy is mounted     /sys/fs/cgroup ◄─ /kubepods
                                                             ╰─ pod7 ─ app
    from the own group up to the mount's root each may bound; the least holds

Systems have version 2, version 1 with a hierarchy for each controller, or both at once.
In a container the group's name may be the host's while only a part of the tree is
mounted: what lies above the mount cannot be seen, nor can its limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Without a limit version 1 says the largest page-aligned int64.
_NO_LIMIT = 1 << 60
# Of version 2 and of version 1; a group has those of one. Above `high` the kernel takes
# pages back as fast as they are made, so nothing gets on.
_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
_USED = ("memory.current", "memory.usage_in_bytes")


@dataclass(frozen=True, slots=True)
class Limits:
    """The least of all limits, and what of the memory is left; None where nothing bounds.

    `free_bytes` counts pages of files as free, for the system takes them back.
    """

    memory_bytes: int | None = None
    free_bytes: int | None = None
    cores: float | None = None


def limits(root: Path = Path("/")) -> Limits:
    """Read the limits of this process's groups; `root` is where the file system begins."""
    memory = [found for group in _groups(root, "memory") if (found := _memory(group))]
    cores = [share for group in _groups(root, "cpu") if (share := _cores(group))]
    return Limits(
        memory_bytes=min((most for most, _ in memory), default=None),
        free_bytes=min((free for _, free in memory), default=None),
        cores=min(cores, default=None),
    )


def memory_groups() -> Iterator[Path]:
    """Yield the folders of the groups that account this process's memory, its own first."""
    return _groups(Path("/"), "memory")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, from its own up to the mount's root."""
    for mount in _mounts(root, controller):
        own = _below(mount, root)
        yield own
        while own != mount.folder:
            own = own.parent
            yield own


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: `shown` is the group that its root shows, `own` this process's."""

    folder: Path
    shown: str
    own: str


def _below(mount: _Mount, root: Path) -> Path:
    for path in (mount.own.removeprefix(mount.shown.rstrip("/")), mount.own):
        folder = mount.folder / path.strip("/")
        # A group that lies outside of what is mounted is named by "..".
        if ".." not in folder.parts and folder.is_dir():
            return folder
    return mount.folder


def _mounts(root: Path, controller: str) -> Iterator[_Mount]:
    own = dict(_own(root))
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        names = kind[2].split(",") if kind[0] == "cgroup" else [""]
        if kind[0] not in ("cgroup", "cgroup2") or (names != [""] and controller not in names):
            continue
        name = controller if kind[0] == "cgroup" else ""
        if name in own:
            folder = root / _unescaped(fields[4]).lstrip("/")
            yield _Mount(folder, _unescaped(fields[3]), own[name])


def _own(root: Path) -> Iterator[tuple[str, str]]:
    """Yield a controller and the path of the group; version 2 has one for all, named ""."""
    for line in _lines(root / "proc/self/cgroup"):
        _, colon, rest = line.partition(":")
        names, another, path = rest.partition(":")
        if colon and another:
            for name in names.split(","):
                yield name, path


def _memory(group: Path) -> tuple[int, int] | None:
    """Give a group's limit and what of it is left."""
    told = _statistics(group)
    # The statistics of version 1 know what the groups above allow, seen from here or not.
    limits = [told.get("hierarchical_memory_limit")]
    limits += [_number(group / name) for name in _LIMITS]
    bounds = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
    if not bounds:
        return None
    used = sum(_number(group / name) or 0 for name in _USED) - _of_files(told)
    return min(bounds), max(0, min(bounds) - max(0, used))


def _of_files(told: dict[str, int]) -> int:
    """Count the pages that are taken back when memory is short."""
    prefix = "total_" if "total_inactive_file" in told else ""
    return sum(told.get(f"{prefix}{which}_file", 0) for which in ("active", "inactive"))


def _cores(group: Path) -> float | None:
    """Give a group's share of processor time, in cores."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _statistics(group: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(group / "memory.stat"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # not there, or "max"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """Read a path as mountinfo writes it: spaces and the like as octal numbers."""
    parts = path.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])
