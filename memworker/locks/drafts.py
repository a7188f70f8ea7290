"""A file under a name of its own until it is whole; what killed writers left of it is removed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memworker.locks.kinds import LockKind, Unsupported, try_lock

_SUFFIX = ".tmp"


@contextmanager
def draft_of(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """Give a new file beside `path` to write; it takes its name at the end, or goes.

    It is locked meanwhile, and what is not locked was left by a killed process. On a
    file system without flock that cannot be known, and stays. Raises OSError.
    """
    _remove_leftovers(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with contextlib.suppress(Unsupported):
            try_lock(fd, LockKind.FLOCK, shared=False)
        yield draft
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    finally:
        # Nothing was written by it, so its closing has nothing to tell.
        with contextlib.suppress(OSError):
            os.close(fd)


def _remove_leftovers(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}{re.escape(_SUFFIX)}\Z")
    for left in filter(lambda each: ours.match(each.name), path.parent.iterdir()):
        with contextlib.suppress(OSError):
            fd = os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if try_lock(fd, LockKind.FLOCK, shared=False):
                    left.unlink()
            finally:
                os.close(fd)
