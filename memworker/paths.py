"""Turn a path that a user gave into the path that is used; done here alone.

Every door passes its paths through here once, before anything is looked up or made: so one
spelling cannot name two places, and a later change of the working folder moves nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

from memworker.errors import UsageError
from memworker.values import shown

PathGiven: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""What names a file or a folder; bytes are a name as the system holds it."""

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


def database_place(given: Any) -> Path:
    """Return the place of a database, as `place` does. Raises UsageError for what cannot be one."""
    found = place(given, "a database directory")
    name = shown_name(str(found))
    if name != str(found):
        raise UsageError(
            f"the name of a database directory must be UTF-8, as LanceDB has it, and {name} is not;"
            " rename it, or name another"
        )
    return found
