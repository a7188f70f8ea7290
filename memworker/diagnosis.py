"""What the system refused, in one line: what, on which path or in which call, and what to do."""

from __future__ import annotations

import errno
import linecache
import os
from pathlib import Path
from traceback import walk_tb

_CODE_CHARS = 80
_PACKAGE = Path(__file__).parent


def refused_by_system(error: BaseException) -> bool:
    """Tell whether it was the system that refused, and not our code that is wrong."""
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    if isinstance(error, ImportError):
        return _unmapped(error)
    # CPython's own complaint where memory ran out in a place that did not look.
    if isinstance(error, SystemError):
        return bool(_limits("vd"))
    return isinstance(error, OSError | MemoryError)


def told(error: BaseException) -> str:
    """Say what was refused, on which path, else in which call; then what to do, where known."""
    advice = _advice(error)
    return f"{_what(error)}{_where(error)}{f'. {advice}' if advice else ''}"


def _what(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, MemoryError | SystemError):
        return "the system gave no more memory"
    return str(error)


def _where(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        second = f" to {error.filename2!s}" if error.filename2 is not None else ""
        name = error.filename
        return f": {os.fsdecode(name) if isinstance(name, bytes) else name}{second}"
    call = "" if isinstance(error, ImportError) else _call(error)
    return f", in {call}" if call else ""


def _call(error: BaseException) -> str:
    """Give our last line before the system, and its words; that of a library where none is ours."""
    steps = [(Path(f.f_code.co_filename), line) for f, line in walk_tb(error.__traceback__)]
    ours = [step for step in steps if step[0].is_relative_to(_PACKAGE)]
    if not steps:
        return ""
    path, line = (ours or steps)[-1]
    name = path.relative_to(_PACKAGE.parent) if ours else path.name
    code = linecache.getline(str(path), line).strip()[:_CODE_CHARS]
    return f"{name}:{line}" + (f" ({code})" if code else "")


def _advice(error: BaseException) -> str:
    number = getattr(error, "errno", None) or 0
    # With a path it was a file that was not to be had at this moment, and no process.
    nameless = number == errno.EAGAIN and getattr(error, "filename", None) is None
    if isinstance(error, RuntimeError) or nameless:
        # A thread also needs an address for its stack.
        return f"Allow more processes and threads, or use fewer workers{_limits('uv')}"
    if isinstance(error, MemoryError | ImportError | SystemError) or number == errno.ENOMEM:
        return f"Allow more memory, or use fewer workers{_limits('vd')}"
    return _ADVICE.get(number, "")


_ADVICE = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there: the quota is used up",
    errno.EMFILE: "Allow more open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "The whole machine has too many open files",
    errno.EFBIG: "Allow larger files (ulimit -f)",
}


def _unmapped(error: ImportError) -> bool:
    """Tell whether a library is there and the system would not map it."""
    words = str(error)
    return "failed to map" in words or "cannot allocate" in words or "Cannot allocate" in words


def _limits(letters: str) -> str:
    """Name the limits that are set for this process, by the letters they have in a shell."""
    try:
        import resource
    except ImportError:
        return ""
    kinds = {
        "d": (resource.RLIMIT_DATA, 1024),
        "u": (resource.RLIMIT_NPROC, 1),
        "v": (resource.RLIMIT_AS, 1024),
    }
    found = []
    for letter in letters:
        kind, unit = kinds[letter]
        most, _ = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            found.append(f"ulimit -{letter} {most // unit}")
    return f" (set here: {', '.join(found)})" if found else ""
