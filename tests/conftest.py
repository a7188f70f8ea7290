"""Shared fixtures: the reference data, and a watch for what a test leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import hypothesis
import psutil
import pytest

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
    # Else fastembed makes a folder of a fixed name where temporary files go, and leaves it.
    if "FASTEMBED_CACHE_PATH" not in os.environ:
        os.environ["FASTEMBED_CACHE_PATH"] = tempfile.mkdtemp(prefix="memworker-fastembed-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop("FASTEMBED_CACHE_PATH")))


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
    before = _workers(), _shared_memory()
    yield
    assert _workers() <= before[0], "worker processes left behind"
    left = {path for path in _shared_memory() - before[1] if not _is_of_others(path)}
    assert not left, "shared memory left behind"


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


def _is_of_others(path: str) -> bool:
    """Tell whether a file is gone by now, or in use by a process that is none of ours.

    Another suite may run beside this one.
    """
    if not os.path.exists(path):
        return True
    me = psutil.Process()
    ours = {me.pid, *(child.pid for child in me.children(recursive=True))}
    others = (each for each in Path("/proc").glob("[0-9]*") if int(each.name) not in ours)
    return any(_uses(each, path) for each in others)


def _uses(process: Path, path: str) -> bool:
    with suppress(OSError):
        if any(os.readlink(fd) == path for fd in (process / "fd").iterdir()):
            return True
        return path in (process / "maps").read_text()
    return False
