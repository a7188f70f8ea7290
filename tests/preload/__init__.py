"""Libraries that are loaded before all others, so that chosen calls of a process fail or lie."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def preload(tmp_path_factory):
    """Give a function: the name of a C file here to the environment that loads it.

    Skips where there is no C compiler, or another dynamic loader than Linux's.
    """
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("preload")

    @lru_cache
    def built(name: str) -> Path:
        library = folder / f"{name}.so"
        source = Path(__file__).parent / f"{name}.c"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)
        return library

    return lambda name, **settings: {"LD_PRELOAD": str(built(name)), **settings}
