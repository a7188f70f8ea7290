"""Folders: where tables would lie, where temporary files do, and the model cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil

from memworker.doctor.findings import Finding, size
from memworker.errors import ModelUnavailable
from memworker.locks import LockKind, probe_kind
from memworker.models import cache_home, describe_model, offline_switch
from memworker.paths import shown_name

_FEW_BYTES = 1 << 30
_LOCKS = {
    LockKind.FLOCK: "locks work (flock)",
    LockKind.RECORD: "locks work (record locks; flock does not)",
    LockKind.LEASE: "no locks of the system: writers take turns by leases",
}


def disk(folder: Path) -> Finding:
    """Tell of the disk that `folder` lies on, or would: what is free, whether locks work."""
    there = _existing(folder)
    free, kind = psutil.disk_usage(str(there)).free, _file_system(there)
    writable = os.access(there, os.W_OK | os.X_OK)
    locks = _locks(there) if writable else None
    writable = locks is not None
    said = _LOCKS[locks] if locks else "cannot be written"
    told = f"{shown_name(str(there))} ({kind or 'unknown file system'}): {size(free)} free, {said}"
    facts = {
        "folder": shown_name(str(there)),
        "file_system": kind,
        "free_bytes": free,
        "writable": writable,
        "locks": str(locks) if locks else None,
    }
    return Finding("disk", told, facts, tuple(_disk_advice(there, free, writable, locks)))


def _locks(folder: Path) -> LockKind | None:
    """Try a lock in the folder; None where no file can be made, whatever its mode says."""
    try:
        return probe_kind(folder)
    except OSError:
        return None


def _disk_advice(there: Path, free: int, writable: bool, locks: LockKind | None) -> list[str]:
    name, advice = shown_name(str(there)), []
    if not writable:
        advice.append(f"{name} cannot be written by this user: point --db at another folder.")
    if free < _FEW_BYTES:
        advice.append(
            f"Only {size(free)} are free on the disk of {name}: a million vectors of 384 numbers"
            " take 1.5 GB, and as much again while a table is made compact."
        )
    if locks is LockKind.LEASE:
        advice.append(
            f"The file system of {name} has no locks: a writer that dies keeps others out for up to"
            " a minute. A local disk, or a network one mounted with locks, does not."
        )
    return advice


def temporary() -> Finding:
    """Tell where temporary files go, and whether they can."""
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        advice: tuple[str, ...] = ("Point TMPDIR at a folder that can be written.",)
        return Finding("temporary files", f"nowhere: {error.strerror}", {"folder": None}, advice)
    free = psutil.disk_usage(folder).free
    facts = {"folder": shown_name(folder), "free_bytes": free}
    advice = ()
    if free < _FEW_BYTES // 4:
        advice = (f"Only {size(free)} are free in {folder}: point TMPDIR at another folder.",)
    return Finding("temporary files", f"{shown_name(folder)}: {size(free)} free", facts, advice)


def model_cache(model: str) -> Finding:
    """Tell where models are kept, what lies there, and whether `model` is to be had."""
    try:
        home = cache_home()
    except ModelUnavailable as error:
        return Finding("model cache", "none", {"folder": None}, (str(error),))
    there = _existing(home)
    writable, held = os.access(there, os.W_OK | os.X_OK), _bytes_in(home)
    listing = describe_model(model)
    switch = offline_switch()
    told = f"{shown_name(str(home))}: {size(held)}, {'' if writable else 'read-only, '}"
    told += f"{listing.spec.name} {'is there' if listing.cached else 'is not there yet'}"
    advice = []
    if not listing.cached and switch:
        advice.append(
            f"{listing.spec.name} is not in the cache and nothing is fetched ({switch}): fetch it"
            f" once without that, by `memworker models pull {listing.spec.name}`."
        )
    elif not listing.cached and not writable:
        advice.append(
            f"{listing.spec.name} is not in the cache, which cannot be written: point"
            " MEMWORKER_CACHE at a folder that can."
        )
    elif not listing.cached:
        advice.append(f"`memworker models pull {listing.spec.name}` fetches it now.")
    facts = {
        "folder": shown_name(str(home)),
        "bytes": held,
        "writable": writable,
        "model": listing.spec.name,
        "cached": listing.cached,
        "offline": switch or None,
    }
    return Finding("model cache", told, facts, tuple(advice))


def _existing(folder: Path) -> Path:
    """Return the folder, or what is there of the way to it."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _bytes_in(folder: Path) -> int:
    """Count the bytes of the files below; what goes meanwhile counts as none."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total


def _file_system(folder: Path) -> str | None:
    """Return the kind of file system, as the mount that lies nearest says it."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return None
    above = [each for each in mounts if folder.resolve().is_relative_to(each.mountpoint)]
    # Of two mounts on one folder the later one is seen.
    nearest = sorted(above, key=lambda each: len(Path(each.mountpoint).parts))[-1:]
    return nearest[0].fstype if nearest else None
