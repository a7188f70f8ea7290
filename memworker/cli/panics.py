"""Keeps what LanceDB's threads print of their own errors off the screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_unseen() -> Iterator[None]:
    """Let native code write nothing to the standard error meanwhile; we still can, by `sys.stderr`.

    At a damaged page, or a folder that cannot be made, LanceDB's Rust panics, and tells the
    terminal; what comes of it is raised, and we say it ourselves. Not for what starts workers:
    theirs is the same standard error.
    """
    ours = sys.stderr
    if ours is None:
        yield  # it is closed, and its number may be another file's
        return
    real = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        sys.stderr = os.fdopen(os.dup(real), "w", buffering=1, errors="replace")
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(real, 2)
        sys.stderr.close()
        sys.stderr = ours
        os.close(real)
        os.close(nowhere)
