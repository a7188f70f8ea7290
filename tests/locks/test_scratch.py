"""Folders and files of a process's own: gone when it is, however it ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memworker.locks import Scratch, draft_of, sweep
from tests.locks.test_locks import agree, process
from tests.preload import preload  # noqa: F401 - a fixture

SCRATCH = """
import sys
from pathlib import Path
from memworker.locks import Scratch
scratch = Scratch(Path(sys.argv[1]))
(scratch.path / "spill").write_text("x")
print("made", scratch.path, flush=True)
sys.stdin.readline()
scratch.remove()
"""

DRAFT = """
import sys
from pathlib import Path
from memworker.locks import draft_of
with draft_of(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    print("made", draft, flush=True)
    sys.stdin.readline()
"""


def left_in(home):
    return [path for path in home.iterdir() if not path.name.startswith("locking-")]


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_a_folder_stays_while_its_process_lives_and_goes_with_the_next(tmp_path, kind):
    home = tmp_path / "tmp"
    agree(home, kind)
    with process(SCRATCH, home) as one:
        made = Path(one.wait_for("made").split()[1])
        sweep(home)
        own = Scratch(home)
        assert (made / "spill").exists() and own.path != made
        own.remove()
        one.popen.kill()
        one.popen.wait()
    assert (made / "spill").exists()
    Scratch(home).remove()
    assert left_in(home) == []


def test_a_folder_is_removed_by_its_process(tmp_path):
    with process(SCRATCH, tmp_path) as one:
        one.wait_for("made")
        one.go_on()
        assert one.popen.wait(30) == 0
    assert left_in(tmp_path) == []


def test_only_ours_is_swept(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "0123456789abcdeg").mkdir()
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "00112233445566ff.lock").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in left_in(tmp_path)) == ["0123456789abcdeg", "notes"]
    sweep(tmp_path / "nowhere")


def test_a_draft_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "[x].json"
    with draft_of(path) as draft:
        draft.write_text("whole")
        assert not path.exists() and draft.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyError), draft_of(path) as draft:
        draft.write_text("other")
        raise KeyError
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_draft_of_a_killed_process_is_removed_by_the_next(tmp_path):
    path = tmp_path / "x"
    with process(DRAFT, path) as one:
        made = Path(one.wait_for("made").split()[1])
        with draft_of(path):
            assert made.exists()
        one.popen.kill()
        one.popen.wait()
    assert made.exists()
    with draft_of(path):
        assert not made.exists()


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    os.symlink(tmp_path / "precious", tmp_path / ".x.0123456789abcdef.tmp")
    os.mkfifo(tmp_path / ".x.0123456789abcdee.tmp")
    with draft_of(tmp_path / "x"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def failing(*_given, **_named):
    raise OSError(5, "Input/output error")


def test_what_cannot_be_removed_is_left_to_the_next(tmp_path, monkeypatch):
    scratch = Scratch(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", failing)
        scratch.remove()
    assert left_in(tmp_path)
    sweep(tmp_path)
    assert not left_in(tmp_path)


def test_a_draft_that_has_its_name_is_done_whatever_fails_then(tmp_path, monkeypatch):
    with monkeypatch.context() as broken, draft_of(tmp_path / "facts") as draft:
        draft.write_text("whole")
        broken.setattr(os, "unlink", failing)
        broken.setattr(os, "close", failing)
    assert (tmp_path / "facts").read_text() == "whole"


def test_a_draft_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    with (
        pytest.raises(ZeroDivisionError),
        monkeypatch.context() as broken,
        draft_of(tmp_path / "facts"),
    ):
        broken.setattr(os, "unlink", failing)
        raise ZeroDivisionError
