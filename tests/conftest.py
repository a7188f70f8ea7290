"""Shared fixtures: the reference data, and a watch for what a test leaves behind."""

from __future__ import annotations

import atexit
import fcntl
import os
import signal
from pathlib import Path

import hypothesis
import psutil
import pytest

from tests.leftovers import own_folder, shared_memory, shared_memory_left

LANES = "MEMWORKER_TEST_LANES"
"""Names the folder where the lanes of one run of the suite meet; set by whoever starts them."""

# No test depends on how fast the machine is, nor on what an earlier run has found.
hypothesis.settings.register_profile("suite", deadline=None, database=None)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    """Let signals be heard that a background job, or nohup, begins deaf to.

    What a process ignores, its children do too; what it answers, they do not inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    # Read when they are imported: the one would make a folder of a fixed name where temporary
    # files go, the other one in the home folder.
    own, me = own_folder(), os.getpid()
    # Mem0 writes for as long as the process runs; one that a test forks may end as it does.
    atexit.register(lambda: own.remove() if os.getpid() == me else None)
    os.environ.setdefault("FASTEMBED_CACHE_PATH", str(own.path / "fastembed"))
    os.environ["MEM0_DIR"] = str(own.path / "mem0")
    if not hasattr(config, "workerinput"):
        os.environ[LANES] = str(own.path)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Run what is marked alone while no other lane runs a test, everything else beside them.

    Whoever waits for the others keeps the gate shut: else it would wait for as long as they
    have tests. The time goes to no test's own timeout, for that begins later.
    """
    folder = Path(os.environ[LANES])
    alone = item.get_closest_marker("alone") is not None
    with open(folder / "turn", "wb") as turn:
        with open(folder / "gate", "wb") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            # Closing would not do: a child that a test has forked may have it open still.
            fcntl.flock(turn, fcntl.LOCK_UN)


def pytest_addoption(parser):
    parser.addoption("--data", default=os.environ.get("MEMWORKER_DATA"), help="reference data")
    parser.addoption("--long", action="store_true", help="run what is marked long, too")


def pytest_collection_modifyitems(config, items):
    """Leave out what is long, unless it is asked for; each kind has a short test beside."""
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long: --long runs it"))


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
    before = _workers(), shared_memory()
    yield
    assert _workers() <= before[0], "worker processes left behind"
    assert not shared_memory_left(before[1]), "shared memory left behind"


def _workers() -> int:
    found = 0
    for child in psutil.Process().children(recursive=True):
        try:
            found += "multiprocess.spawn" in " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found
