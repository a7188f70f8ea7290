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
    """Say of each file of a version what is wrong with it, but for the `known` paths.

    A flaw of a manifest is found in reading it: see `manifest.read_manifest`.
    """
    for path, size in manifest.files.items():
        if path not in known:
            yield from _flaw(table / path, path, size)
    for folder in (index.folder for index in manifest.indices):
        if folder not in known:
            names = index_files(table / folder)
            if not names:
                yield f"{folder} holds no file"
            for name in names:
                yield from _flaw(table / folder / name, f"{folder}/{name}", 0)


def parts_of(manifest: Manifest) -> frozenset[str]:
    """Return what `flaws` takes for known of a version that was looked at."""
    return frozenset([*manifest.files, *(index.folder for index in manifest.indices)])


def _flaw(path: Path, name: str, size: int) -> Iterator[str]:
    try:
        with open(path, "rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size
            end = _ENDS.get(path.suffix, b"")
            file.seek(max(0, there - len(end)))
            last = file.read(len(end))
    except OSError as error:
        yield f"{name} cannot be read ({error.strerror})"
        return
    if size and there != size:
        yield f"{name} has {there:,} of {size:,} bytes"
    elif not there:
        yield f"{name} is empty"
    elif last != end:
        yield f"{name} ends without its footer"
