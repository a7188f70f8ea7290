"""Records in the cache: written whole or not at all, and left out where it cannot be written."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from memworker.errors import ModelCorrupt
from memworker.locks import draft_of


def keep(record: Path, text: str) -> None:
    """Write a record under a temporary name and rename it into place, if that can be done.

    A cache may be on a read-only mount or a full disk. What a record would have
    spared the next run is then done again.
    """
    with suppress(OSError):
        make_private(record.parent)
        with draft_of(record) as draft:
            draft.write_text(text)


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


class HashBook:
    """Remembers each file's SHA-256 together with the stamp it was taken at.

    Hashing 90 MB at every start would cost more than loading the model, so an
    unchanged size and mtime stand for an unchanged file; `recheck` does not.
    Files that are not the cache's own are `changing`: they may be exchanged for
    others of the same size and mtime, as images and archives set them, and so
    the ctime, which no program can set, counts too.
    """

    def __init__(self, path: Path, *, base: Path, changing: bool = False) -> None:
        self.path = path
        self.base = base
        self._changing = changing
        self._known = _read_records(path)
        self._dirty = False

    def files(self) -> list[Path]:
        return [self.base / key for key in self._known]

    def digest(self, path: Path) -> str:
        """Return the hash of `path`, remembered where its stamp is unchanged."""
        return self._trusted(path) or self.learn(path)

    def require(self, path: Path, expected: str = "", *, recheck: bool = False) -> str:
        """Return the hash of `path`, which must be `expected`, or else what was remembered.

        Raises ModelCorrupt where the file is gone or has another hash.
        """
        if not path.is_file():
            raise ModelCorrupt(f"the model file {path} is gone. {_REFETCH}")
        trusted = "" if recheck else self._trusted(path)
        if trusted and expected in ("", trusted):
            return trusted
        stamp, actual = self._stamp(path), sha256_of(path)
        expected = expected or self._remembered(path) or actual
        if actual != expected:
            raise ModelCorrupt(
                f"{path} ({path.stat().st_size} bytes) has SHA-256 {actual}, "
                f"expected {expected}: it is truncated or damaged. {_REFETCH}"
            )
        self._remember(path, stamp, actual)
        return actual

    def learn(self, path: Path) -> str:
        """Hash `path` now and remember it."""
        # The stamp first: what is written meanwhile then has another one.
        stamp, digest = self._stamp(path), sha256_of(path)
        self._remember(path, stamp, digest)
        return digest

    def text(self) -> str:
        """Return all that is known, as the book's file has it."""
        records = {key: [*stamp, digest] for key, (stamp, digest) in self._known.items()}
        return json.dumps(records, indent=1)

    def save(self) -> None:
        """Keep what was learnt, if anything was."""
        if self._dirty:
            keep(self.path, self.text())
        self._dirty = False

    def _stamp(self, path: Path) -> tuple[int, ...]:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        return (*stamp, status.st_ctime_ns) if self._changing else stamp

    def _remember(self, path: Path, stamp: tuple[int, ...], digest: str) -> None:
        self._known[self._key(path)] = stamp, digest
        self._dirty = True

    def _remembered(self, path: Path) -> str:
        known = self._known.get(self._key(path))
        return known[1] if known else ""

    def _trusted(self, path: Path) -> str:
        known = self._known.get(self._key(path))
        return known[1] if known and known[0] == self._stamp(path) else ""

    def _key(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()


_REFETCH = "Run `memworker models pull NAME` to replace it."


def _read_records(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        raw = json.loads(path.read_bytes())
        return {str(k): (tuple(map(int, v[:-1])), str(v[-1])) for k, v in raw.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # A missing or torn record only means that the files are hashed again.
        return {}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
