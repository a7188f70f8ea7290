"""An input that takes several commits, and file systems of a chosen size."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager

import pytest

from tests.faults import harness

ROWS = 20_000


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    """An input file of several commits, and its oracle."""
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    return path, harness.write_input(path, ROWS)


@pytest.fixture
def db(tmp_path):
    return tmp_path / "db"


@pytest.fixture
def small_disk(tmp_path):
    """Give a function that mounts a file system of so many megabytes for the time of the test."""
    if not harness.may_mount():
        pytest.skip("needs the right to mount a file system (root)")
    folder = tmp_path / "disk"
    folder.mkdir()

    @contextmanager
    def mounted(megabytes):
        size = f"size={megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)

    return mounted
