"""What the system refused: the line says what it was, and advises only what can help."""

from __future__ import annotations

import errno
import os

import pytest

from memworker.diagnosis import told


@pytest.mark.parametrize("path", [None, "/data/table.lock"])
def test_more_processes_help_only_where_it_was_no_file_that_was_refused(path):
    number = errno.EAGAIN
    said = told(OSError(number, os.strerror(number), *([path] if path else [])))
    assert ("processes and threads" in said) == (path is None)
    assert path is None or said.endswith(path)


def test_a_full_disk_is_named_with_its_path():
    said = told(OSError(errno.ENOSPC, "No space left on device", "/data/file"))
    assert said == "No space left on device: /data/file. Free some space there"
