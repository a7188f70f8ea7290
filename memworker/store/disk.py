"""What the system says of our own files, in our words: every error names its path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memworker.errors import StoreError, StoreUnwritable


@contextmanager
def disk_errors(
    path: Path, then: str, *, doing: str = "written", kind: type[StoreError] = StoreUnwritable
) -> Iterator[None]:
    """Raise an OSError as `kind`: the file that it came from, or else `path`, cannot be `doing`.

    `then` says what holds now and what to do.
    """
    try:
        yield
    except OSError as error:
        raise kind(
            f"{error.filename or path} cannot be {doing}: {error.strerror or error}. {then}"
        ) from error
