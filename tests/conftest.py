"""Shared fixtures: the reference data, and a watch for what a test leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest


def pytest_configure(config):
    """Let signals be heard that a background job, or nohup, begins deaf to.

    What a process ignores, its children do too; what it answers, they do not inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_addoption(parser):
    parser.addoption("--data", default=os.environ.get("MEMWORKER_DATA"), help="reference data")


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    """The folder of reference data; the test is skipped without it."""
    given = request.config.getoption("--data")
    if not given:
        pytest.skip("needs the reference data: --data DIR or MEMWORKER_DATA")
    return Path(given)


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind():
    """Fail a module that leaves a worker process or a shared-memory entry.

    Not each test: a pool that several share may be replacing a worker between two of them.
    """
    before = _workers(), _shared_memory()
    yield
    assert _workers() <= before[0], "worker processes left behind"
    assert _shared_memory() <= before[1], "shared memory left behind"


def _workers() -> int:
    found = 0
    for child in psutil.Process().children(recursive=True):
        try:
            found += "multiprocess.spawn" in " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


def _shared_memory() -> set[str]:
    shared = Path("/dev/shm")
    # Folders are somebody's temporary ones: what is shared is a file.
    return {str(path) for path in shared.glob("*memworker*") if path.is_file()}
