"""The model cache on disk: its folders, its locks, and which files were verified when."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memworker.errors import ModelCorrupt, ModelUnavailable
from memworker.locks import Busy, FileLock

MANIFEST = "manifest.json"
_LOCK_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class ModelCache:
    """The cache folder; everything in it is readable by its owner alone."""

    root: Path

    @classmethod
    def locate(cls, root: Path | None = None) -> ModelCache:
        """Use `root`, else MEMWORKER_CACHE/models, else the user's cache folder."""
        if root is None:
            override = os.environ.get("MEMWORKER_CACHE")
            root = Path(override) if override else _user_cache()
            root = root / "models"
        return cls(Path(os.path.abspath(root.expanduser())))

    def folder(self, *parts: str) -> Path:
        """Make the folder `parts` under the root, mode 0700.

        Raises ModelUnavailable where the cache cannot be written.
        """
        path = self.root.joinpath(*parts)
        try:
            for folder in (self.root.parent, self.root, path):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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

        The caller holds the lock of `key`: a folder that an earlier, killed
        process left half-made is removed first.
        """
        parent = self.folder(room)
        for leftover in parent.glob(f".{key}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=parent))
        try:
            fill(draft)
            _seal(draft)
            shutil.rmtree(parent / key, ignore_errors=True)
            os.replace(draft, parent / key)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return parent / key


def _user_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("memworker", appauthor=False)


def _seal(draft: Path) -> None:
    """Make files private, hash them all and write the manifest, last."""
    book = HashBook(draft / MANIFEST, base=draft)
    for path in sorted(draft.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            _flush_to_disk(path)
            book.learn(path)
    book.save()


def _flush_to_disk(path: Path) -> None:
    # A rename may outlive a power cut that the data does not.
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


class HashBook:
    """Remembers each file's SHA-256 together with the size and mtime it was taken at.

    Hashing 90 MB at every start would cost more than loading the model, so an
    unchanged size and mtime stand for an unchanged file; `recheck` does not.
    """

    def __init__(self, path: Path, *, base: Path) -> None:
        self.path = path
        self.base = base
        self._known = _read_records(path)
        self._dirty = False

    def files(self) -> list[Path]:
        return [self.base / key for key in self._known]

    def digest(self, path: Path) -> str:
        """Return the hash of `path`, remembered where size and mtime are unchanged."""
        return self._trusted(path) or self.learn(path)

    def require(self, path: Path, expected: str = "", *, recheck: bool = False) -> str:
        """Return the hash of `path`, which must be `expected`, or else what was remembered.

        Raises ModelCorrupt where the file is gone or has another hash.
        """
        if not path.is_file():
            raise ModelCorrupt(f"the model file {path} is gone. {_REFETCH}")
        trusted = "" if recheck else self._trusted(path)
        actual = trusted or sha256_of(path)
        expected = expected or self._remembered(path) or actual
        if actual != expected:
            raise ModelCorrupt(
                f"{path} ({path.stat().st_size} bytes) has SHA-256 {actual}, "
                f"expected {expected}: it is truncated or damaged. {_REFETCH}"
            )
        if not trusted:
            self._remember(path, actual)
        return actual

    def learn(self, path: Path) -> str:
        """Hash `path` now and remember it."""
        digest = sha256_of(path)
        self._remember(path, digest)
        return digest

    def save(self) -> None:
        """Write what was learnt under a temporary name and rename it into place."""
        if not self._dirty:
            return
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(self._known, file, indent=1)
        os.replace(name, self.path)
        self._dirty = False

    def _remember(self, path: Path, digest: str) -> None:
        status = path.stat()
        self._known[self._key(path)] = (status.st_size, status.st_mtime_ns, digest)
        self._dirty = True

    def _remembered(self, path: Path) -> str:
        known = self._known.get(self._key(path))
        return known[2] if known else ""

    def _trusted(self, path: Path) -> str:
        known = self._known.get(self._key(path))
        status = path.stat()
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            return ""
        return known[2]

    def _key(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()


_REFETCH = "Run `memworker models pull NAME` to replace it."


def _read_records(path: Path) -> dict[str, tuple[int, int, str]]:
    try:
        raw = json.loads(path.read_bytes())
        return {str(k): (int(v[0]), int(v[1]), str(v[2])) for k, v in raw.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # A missing or torn record only means that the files are hashed again.
        return {}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
