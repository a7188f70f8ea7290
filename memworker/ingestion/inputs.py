"""What an input was when a run found it, so that an edit between two runs is noticed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xxhash import xxh3_64, xxh3_64_hexdigest

from memworker.ingestion.readers import Source
from memworker.ingestion.readers.paths import STDIN
from memworker.store import InputFile

_END_BYTES = 64 << 10


def fingerprints(sources: Iterable[Source]) -> tuple[InputFile, ...]:
    """Describe every regular file; standard input and pipes cannot be told apart.

    Only both ends of a file are hashed, as a job must not read its input
    twice; an edit in between shows in size or modification time.
    """
    found = (_fingerprint(Path(source.path)) for source in sources if source.path != STDIN)
    return tuple(file for file in found if file is not None)


def job_key(names: Sequence[str], options: Mapping[str, str], model: str) -> str:
    """Name a job: equal for runs of the same command on the same names from the same folder."""
    absolute = [name if name == STDIN else os.path.abspath(name) for name in names]
    return xxh3_64_hexdigest(json.dumps([absolute, dict(options), model], sort_keys=True).encode())


def difference(before: Iterable[InputFile], after: Iterable[InputFile]) -> str:
    """Say in words which inputs are not what they were; "" when all are."""
    old, new = ({file.path: file for file in files} for files in (before, after))
    said = [_change(old[path], new[path]) for path in new if path in old and old[path] != new[path]]
    said += [f"{path} is new" for path in new if path not in old]
    said += [f"{path} is gone" for path in old if path not in new]
    shown = "; ".join(said[:5])
    return f"{shown}; and {len(said) - 5} more" if len(said) > 5 else shown


def _fingerprint(path: Path) -> InputFile | None:
    try:
        # Before it is opened: opening a named pipe waits for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            digest = xxh3_64(file.read(_END_BYTES) or b"")
            file.seek(max(0, facts.st_size - _END_BYTES))
            digest.update(file.read(_END_BYTES) or b"")
    except OSError:
        # The file went meanwhile: reading it will say so.
        return None
    return InputFile(
        os.path.abspath(path), facts.st_size, facts.st_mtime_ns, str(digest.hexdigest())
    )


def _change(old: InputFile, new: InputFile) -> str:
    if old.size != new.size:
        return f"{new.path} had {old.size:,} bytes and has {new.size:,}"
    if old.digest != new.digest:
        return f"{new.path} has other content of the same size"
    return f"{new.path} was written to since, though size and both ends are the same"
