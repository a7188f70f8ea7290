"""dill, by which multiprocess pickles, imported without its look for a temporary folder."""

from __future__ import annotations

import os
import sys
import tempfile


def import_dill() -> None:
    """Import dill so that it writes nothing and needs no folder to write to.

    At its import it asks `tempfile` where one may write, for a function that
    is not used here. `tempfile` finds out by writing a file, in the working
    directory as a last resort, and raises where there is no such place.
    """
    if "dill" in sys.modules or tempfile.tempdir is not None:
        return
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    # What it would most likely find, for another thread may ask meanwhile.
    tempfile.tempdir = next(filter(None, named), "/tmp")
    try:
        import dill  # type: ignore[import-untyped]  # noqa: F401
    finally:
        tempfile.tempdir = None
