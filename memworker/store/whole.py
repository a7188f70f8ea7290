"""Whether the files of a version are there and whole, which a commit's success does not prove.

LanceDB writes a local file by asynchronous calls, and the error of the last of them is
lost: the commit then succeeds, and names a file without its end. So each new file is looked
at before its commit is believed: its size against the manifest's, and its last bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from memworker.store.durable import index_files
from memworker.store.manifest import MAGIC, Manifest

_ARROW_MAGIC = b"ARROW1"
_ENDS = {".lance": MAGIC, ".idx": MAGIC, ".arrow": _ARROW_MAGIC}


def flaws(table: Path, manifest: Manifest, known: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield what is wrong with the files of a version, but for the `known` paths.

    A flaw of a manifest is found in reading it: see `manifest.read_manifest`.
    """
    files = {path: size for path, size in manifest.files.items() if path not in known}
    for index in manifest.indices:
        if index.folder not in known:
            names = index_files(table / index.folder)
            if not names:
                yield f"{index.folder} holds no file"
            files |= {f"{index.folder}/{name}": 0 for name in names}
    for path, size in files.items():
        if flaw := flaw_of(table / path, size):
            yield f"{path} {flaw}"


def parts_of(manifest: Manifest) -> frozenset[str]:
    """Return what `flaws` takes for known of a version that was looked at."""
    return frozenset([*manifest.files, *(index.folder for index in manifest.indices)])


def flaw_of(path: Path, size: int = 0) -> str | None:
    """Return what is wrong with one file, which should have `size` bytes (0: not noted)."""
    try:
        with open(path, "rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            end = _ENDS.get(path.suffix, b"")
            file.seek(max(0, there - len(end)))
            last = file.read(len(end))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size and there != size:
        return f"has {there:,} of {size:,} bytes"
    if not there:
        return "is empty"
    return "ends without its footer" if last != end else None
