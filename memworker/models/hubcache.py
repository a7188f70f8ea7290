"""What other programs have downloaded: Hugging Face's cache and fastembed's, looked into first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from memworker.models.spec import HubRepo

_HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


def snapshots(hub: HubRepo, files: Iterable[str], *, pinned: bool = False) -> list[Path]:
    """Return the folders of a repository that have all these files, at its revision first.

    Where the files are `pinned` by their hashes, those of any other revision may be the same.
    """
    from huggingface_hub import try_to_load_from_cache

    wanted, found = list(files), []
    for cache_dir, repo in _spellings(hub.repo):
        paths = [
            try_to_load_from_cache(repo, path, cache_dir=cache_dir, revision=hub.revision)
            for path in wanted
        ]
        if paths and all(isinstance(path, str) for path in paths):
            found.append(Path(str(paths[0])).parents[wanted[0].count("/")])
        home = cache_dir / f"models--{repo.replace('/', '--')}"
        others = _other_snapshots(home, wanted, hub.revision, pinned)
        found += [folder for folder in others if folder not in found]
    return found


def _other_snapshots(home: Path, files: list[str], revision: str, pinned: bool) -> list[Path]:
    """Return folders whose revision is another, or is not known where there is but one."""
    there = sorted((home / "snapshots").glob("*/"))
    if not pinned and (len(there) != 1 or revision != "main" or (home / "refs" / "main").exists()):
        return []
    return [folder for folder in there if all((folder / path).is_file() for path in files)]


def _spellings(repo: str) -> Iterator[tuple[Path, str]]:
    """Give the caches that have a repository, by the name it has there: the hub minds no case."""
    wanted = f"models--{repo.replace('/', '--')}".lower()
    for cache_dir in usable_places():
        for name in sorted(os.listdir(cache_dir)):
            if name.lower() == wanted:
                yield cache_dir, name.removeprefix("models--").replace("--", "/", 1)


def snapshot_of(hub: HubRepo) -> Path | None:
    """Return the folder that holds whatever there is of a repository at its revision."""
    for named in ("config.json", "modules.json"):
        if found := snapshots(hub, [named]):
            return found[0]
    return None


def hash_of(path: Path) -> str:
    """Return the SHA-256 by which a cache of the hub names a large file, "" for any other."""
    blob = Path(os.path.realpath(path))
    named = blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name)
    return blob.name if named else ""


def usable_places() -> list[Path]:
    """Return the caches that may be read: there, and nobody else's to fill."""
    return [place for place, told in places() if _is_usable(place, told)]


def places() -> list[tuple[Path, bool]]:
    """Return where the caches are, and whether somebody said so by a variable."""
    from huggingface_hub import constants

    told = any(os.environ.get(name) for name in _HUB_VARIABLES)
    return [(Path(constants.HF_HUB_CACHE), told), _fastembed()]


def _is_usable(cache_dir: Path, told: bool) -> bool:
    """Whether no other user could have put files there: a default is in a shared folder.

    Root could anyhow, and who names a folder trusts it, a read-only mount of another's too.
    Without a home folder a default is "~" in the working directory.
    """
    try:
        if not cache_dir.is_absolute() or not cache_dir.is_dir():
            return False
        return told or cache_dir.stat().st_uid in (os.getuid(), 0)
    except OSError:
        return False


def _fastembed() -> tuple[Path, bool]:
    if named := os.environ.get("FASTEMBED_CACHE_PATH"):
        return Path(named), True
    # Not `tempfile.gettempdir`, which writes to see where it may, and raises where it may not.
    folder = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")
    return Path(folder) / "fastembed_cache", False
