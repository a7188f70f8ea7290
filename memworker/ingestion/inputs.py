"""What an input was when a run found it, so that an edit between two runs is noticed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from xxhash import xxh3_64, xxh3_64_hexdigest

from memworker.ingestion.readers import Source
from memworker.ingestion.readers.paths import STDIN
from memworker.paths import shown_name
from memworker.store import InputFile

_END_BYTES = 64 << 10


def fingerprints(
    sources: Iterable[Source], known: Iterable[InputFile] = ()
) -> tuple[InputFile, ...]:
    """Describe every regular file; standard input and pipes cannot be told apart.

    Only both ends of a file are hashed, as a job must not read its input
    twice; an edit in between shows in size or modification time. A `known` file
    of the same size and time is not opened again.
    """
    before = {file.path: file for file in known}
    folder = _working_folder()
    paths = (path for source in sources if not source.stream for path in _files(source))
    found = (_fingerprint(path, folder, before) for path in paths)
    return tuple(file for file in found if file is not None)


def job_key(names: Sequence[str], options: Mapping[str, str], model: str) -> str:
    """Name a job: equal for runs of the same command on the same names from the same folder."""
    folder = _working_folder()
    absolute = [name if name == STDIN else _absolute(name, folder) for name in names]
    return xxh3_64_hexdigest(json.dumps([absolute, dict(options), model], sort_keys=True).encode())


def difference(before: Iterable[InputFile], after: Iterable[InputFile]) -> str:
    """Describe which inputs have changed; "" when none has."""
    old, new = ({file.path: file for file in files} for files in (before, after))
    said = [_change(old[path], new[path]) for path in new if path in old and old[path] != new[path]]
    said += [f"{path} is new" for path in new if path not in old]
    said += [f"{path} is gone" for path in old if path not in new]
    shown = "; ".join(said[:5])
    return f"{shown}; and {len(said) - 5} more" if len(said) > 5 else shown


def _fingerprint(path: str, folder: str, before: Mapping[str, InputFile]) -> InputFile | None:
    try:
        # Before it is opened: opening a named pipe waits for its writer.
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            return None
        name = _absolute(path, folder)
        known = before.get(name)
        if known and (known.size, known.mtime_ns) == (facts.st_size, facts.st_mtime_ns):
            return known
        facts, digest = _hashed(path)
    except OSError:
        # The file went meanwhile: reading it will say so.
        return None
    return InputFile(name, facts.st_size, facts.st_mtime_ns, digest)


def _files(source: Source) -> tuple[str, ...]:
    """Name the files that a source is in: SQLite keeps what is new in a second one for a while."""
    log = f"{source.path}-wal"
    with_log = source.format == "sqlite" and os.path.exists(log) and os.path.getsize(log) > 0
    return (source.path, log) if with_log else (source.path,)


def _hashed(path: str) -> tuple[os.stat_result, str]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        facts = os.fstat(fd)
        begin = os.pread(fd, _END_BYTES, 0)
        digest = xxh3_64(begin)
        behind = max(0, facts.st_size - _END_BYTES)
        digest.update(os.pread(fd, _END_BYTES, behind) if behind else begin)
    finally:
        os.close(fd)
    return facts, str(digest.hexdigest())


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""  # removed: then all names are whole, or are not found


def _absolute(path: str, folder: str) -> str:
    """Give the whole name as the journal keeps it: in letters that are UTF-8."""
    whole = path if path.startswith("/") else f"{folder}/{path}"
    # Nearly all names are as they should be, and there may be many.
    whole = os.path.normpath(whole) if "/." in whole or "//" in whole else whole
    return shown_name(whole)


def _change(old: InputFile, new: InputFile) -> str:
    if old.size != new.size:
        return f"{new.path} had {old.size:,} bytes and has {new.size:,}"
    if old.digest != new.digest:
        return f"{new.path} has other content of the same size"
    return f"{new.path} was written to since, though size and both ends are the same"
