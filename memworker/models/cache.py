"""The model cache on disk: its folders, its locks, and which files were verified when."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from memworker.diagnosis import told
from memworker.errors import ModelUnavailable, UsageError
from memworker.locks import Busy, FileLock, Scratch, sweep
from memworker.models.records import HashBook, make_private
from memworker.paths import PathGiven, used_path

MANIFEST = "manifest.json"
_LOCK_TIMEOUT_S = 1800.0
_DRAFTS = "drafts"


@dataclass(frozen=True, slots=True)
class ModelCache:
    """The cache folder; everything in it is readable by its owner alone."""

    root: Path

    @classmethod
    def locate(cls, root: PathGiven | None = None) -> ModelCache:
        """Use `root`, else MEMWORKER_CACHE/models, else the user's cache folder."""
        if root is None:
            root = cache_home() / "models"
        return cls(used_path(root, "the model cache"))

    def folder(self, *parts: str) -> Path:
        """Make the folder `parts` under the root, mode 0700.

        Raises ModelUnavailable where the cache cannot be written.
        """
        path = self.root.joinpath(*parts)
        try:
            make_private(path)
        except OSError as error:
            raise ModelUnavailable(
                f"the model cache {path} cannot be made: {error}. "
                "Point MEMWORKER_CACHE at a folder that you may write to."
            ) from error
        return path

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold off other processes that fetch or build `key`; a dead holder releases it.

        Raises ModelUnavailable where another one is at it for half an hour.
        """
        lock = FileLock(self.folder("locks") / f"{key}.lock")
        try:
            lock.acquire(_LOCK_TIMEOUT_S)
        except Busy as busy:
            raise ModelUnavailable(
                f"{busy.holder or 'another process'} has been fetching or building {key} for over"
                f" {_LOCK_TIMEOUT_S / 60:.0f} minutes; stop it, and try again"
            ) from None
        except OSError as error:
            raise ModelUnavailable(
                f"{lock.path} cannot be locked: {error.strerror or error}. "
                "Point MEMWORKER_CACHE at a folder that you may write to."
            ) from error
        with lock:
            yield

    def discard(self, folder: Path) -> None:
        """Remove a published folder of this cache, if it is there."""
        assert folder.is_relative_to(self.root)
        with self.lock(folder.name):
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, room: str, key: str, fill: Callable[[Path], None]) -> Path:
        """Let `fill` write a new folder, record its hashes, then rename it to room/key.

        The caller holds the lock of `key`.
        """
        parent = self.folder(room)
        scratch = Scratch(self.folder(_DRAFTS))
        try:
            draft = scratch.path / key
            draft.mkdir(mode=0o700)
            fill(draft)
            _seal(draft)
            shutil.rmtree(parent / key, ignore_errors=True)
            os.replace(draft, parent / key)
        except OSError as error:
            raise ModelUnavailable(
                f"{key} could not be made in the model cache {parent}: {told(error)}. "
                "MEMWORKER_CACHE can point to another folder."
            ) from error
        finally:
            scratch.remove()
        return parent / key

    def clear(self) -> None:
        """Remove what killed processes have left half made."""
        sweep(self.root / _DRAFTS)


def cache_home() -> Path:
    """Return MEMWORKER_CACHE, else the user's cache folder; ModelUnavailable if they have none."""
    if override := os.environ.get("MEMWORKER_CACHE"):
        try:
            return used_path(override, "MEMWORKER_CACHE")
        except UsageError as error:
            raise ModelUnavailable(str(error)) from error
    from platformdirs import user_cache_path

    with suppress(RuntimeError):
        folder = user_cache_path("memworker", appauthor=False)
        if folder.is_absolute():
            return folder
    raise ModelUnavailable(
        "there is no home folder to keep models in: HOME is not set, and this user is not in the"
        " password file. Point MEMWORKER_CACHE at a folder that you may write to."
    )


def _seal(draft: Path) -> None:
    """Make files private, hash them all and write the manifest, last."""
    book = HashBook(draft / MANIFEST, base=draft)
    for path in sorted(draft.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            _flush_to_disk(path)
            book.learn(path)
    manifest = draft / MANIFEST
    manifest.touch(mode=0o600)
    manifest.write_text(book.text())
    _flush_to_disk(manifest)


def _flush_to_disk(path: Path) -> None:
    # A rename may outlive a power cut that the data does not.
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
