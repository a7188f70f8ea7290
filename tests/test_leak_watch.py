"""The suite's own watch: what another suite is using is no leak, and what nobody uses is one."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.leftovers import is_of_others

HOLD = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"


def test_only_what_a_stranger_has_open_is_somebody_elses(tmp_path):
    path = str(tmp_path / "memworker-1")
    assert is_of_others(path)  # it is gone by now
    open(path, "w").close()
    assert not is_of_others(path)
    command = [sys.executable, "-c", HOLD, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # A stranger: whoever started it has ended.
    orphaning = f"import subprocess; subprocess.Popen({command!r})"
    with subprocess.Popen(command, **pipes) as child:
        child.stdout.readline()
        assert not is_of_others(path)
        child.stdin.close()
    reads, writes = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", orphaning], stdin=reads, stdout=subprocess.PIPE
    ) as parent:
        parent.stdout.readline()
        assert parent.wait() == 0
        assert is_of_others(path)
        os.close(writes)
    os.close(reads)
