"""Turn a path that a user gave into the path that is used; done here alone.

Every door passes its paths through here once, before anything is looked up or made: so one
spelling cannot name two places, and a later change of the working folder moves nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from memworker.errors import UsageError
from memworker.values import shown

PathGiven: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""What names a file or a folder; bytes are a name as the system holds it."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A database in object storage: its address, and LanceDB's storage options for it."""

    uri: str
    # They hold secrets, which no message shows.
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def state(self) -> Path:
        """The folder on this machine for what is not kept in the bucket; see `state_home`."""
        ends = [value for key, value in self.options if key.lower().endswith("endpoint")]
        name = re.sub(r"[^A-Za-z0-9.]+", "-", self.uri).strip("-")[-80:]
        # The same name at two servers is two databases.
        mark = hashlib.sha256("\0".join([self.uri, *ends]).encode()).hexdigest()[:12]
        return state_home() / "buckets" / f"{name}-{mark}"

    def __str__(self) -> str:
        return self.uri


DatabaseGiven: TypeAlias = PathGiven | Bucket
"""What names a database: a directory, or an address in object storage."""
Place: TypeAlias = Path | Bucket
"""Where a database is."""

# What LanceDB reads and writes, and knows how to commit to by a condition.
_BUCKET = re.compile(r"(s3|gs|az)://([^/?#]+)(/[^?#]*)?\Z")
# With one slash, too: that is what Path makes of two.
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://|(s3|gs|gcs|az|abfss?|hdfs|https?|hf|file):/)")


def is_path(given: object) -> bool:
    """Tell whether a value is of a type that names a file or a folder."""
    return isinstance(given, str | bytes | os.PathLike)


def shown_name(text: str) -> str:
    r"""Return a name, or words that hold one, as text that can be written anywhere.

    The bytes of a name that are not UTF-8, which Python keeps as half characters, become
    ``\xNN``.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(map(_shown, text))
    return text


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else character


def named(given: Any, what: str = "a path") -> str:
    """Return a path as text, ``~`` replaced by the home folder, and else as it was given.

    For names that are shown again, or may be patterns. A file whose name begins with ``~``
    is named ``./~…``. Raises UsageError for what names no file of this machine.
    """
    if not is_path(given):
        raise UsageError(
            f"{what} is named by a str or a Path, not by {type(given).__name__}: {shown(given)}"
        )
    text = os.fsdecode(given)
    if not text.strip() or "\0" in text:
        raise UsageError(f"{what} is named by a path that is not blank, not by {text!r}")
    if ADDRESS.match(text):
        raise UsageError(f"{what} must be in a local directory, and {text!r} is an address")
    found = os.path.expanduser(text)
    if found == text and text.split("/")[0] == "~":
        raise UsageError(f"{text!r}: there is no home folder for ~ to stand for; write it out")
    return found


def used_path(given: Any, what: str = "a path") -> Path:
    """Return the whole path, from the root on, of what a path names.

    ``..`` is the folder above the one that a link leads to, as it is to the system; other
    links stay as they are. Raises UsageError as `named` does, and where the working folder
    is gone.
    """
    text = named(given, what)
    try:
        path = Path(os.getcwd(), text)
    except FileNotFoundError:
        if not os.path.isabs(text):
            raise UsageError(
                f"{text!r} begins in the working folder, which was removed; change to another,"
                " or give a whole path"
            ) from None
        path = Path(text)
    if ".." not in path.parts:
        return path
    behind = len(path.parts) - path.parts[::-1].index("..")
    return Path(os.path.realpath(Path(*path.parts[:behind])), *path.parts[behind:])


def place(given: Any, what: str = "a path") -> Path:
    """Return the path without links of what a path names: the same for all names of a place."""
    return Path(os.path.realpath(used_path(given, what)))


def database_place(given: Any, storage_options: Mapping[str, str] | None = None) -> Place:
    """Return the place of a database: a directory, as `place` has it, or one in a bucket.

    Raises UsageError for what cannot be one, and for storage options that nothing would read.
    """
    options = _storage_options(storage_options)
    if isinstance(given, Bucket):
        return Bucket(given.uri, options or given.options)
    if isinstance(given, str) and given.startswith(("s3://", "gs://", "az://")):
        return Bucket(_bucket_uri(given), options)
    if options:
        raise UsageError(
            f"storage options are for s3://, gs:// and az://, and the database is {shown(given)};"
            " leave them out"
        )
    found = place(given, "a database that is not s3://…, gs://… or az://…")
    name = shown_name(str(found))
    if name != str(found):
        raise UsageError(
            f"the name of a database directory must be UTF-8, as LanceDB has it, and {name} is not;"
            " rename it, or name another"
        )
    return found


def state_home() -> Path:
    """Return MEMWORKER_STATE, else the user's folder for what programs keep between runs."""
    if given := os.environ.get("MEMWORKER_STATE"):
        return used_path(given, "MEMWORKER_STATE")
    home = os.environ.get("XDG_STATE_HOME", "")
    # As its specification has it, a path that is not whole counts as none.
    return used_path(home if os.path.isabs(home) else "~/.local/state") / "memworker"


def _bucket_uri(given: str) -> str:
    found = _BUCKET.match(given)
    if found is None or shown_name(given) != given or "//" in (found[3] or ""):
        raise UsageError(
            f"{shown(given)} is no address of a database; write s3://BUCKET/PATH (gs://, az://)"
        )
    return given.rstrip("/")


def _storage_options(given: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise UsageError(f"storage_options is a mapping of str to str, not {type(given).__name__}")
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str) or not key.strip():
            raise UsageError(
                f"storage option {shown(key)}: names and values are str, as LanceDB has them"
            )
    return tuple(sorted(given.items()))
