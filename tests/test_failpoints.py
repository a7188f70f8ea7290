"""Points that end, stop or fail a process, in real children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from memworker import failpoints
from tests import PATIENCE_S

PASS = """
import sys, time
from memworker import failpoints
for turn in range(3):
    print(turn, flush=True)
    failpoints.reach("here")
if "soon" in sys.argv: time.sleep(30)
"""


def run(plan, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", PASS, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | environment | {"MEMWORKER_FAIL": plan},
    )


@pytest.mark.parametrize(
    ("plan", "code", "turns"),
    [
        ("", 0, 3),
        ("elsewhere:kill", 0, 3),
        ("here:kill", -signal.SIGKILL, 1),
        ("other:exit,here:exit@2", failpoints.EXIT_STATUS, 2),
        ("here:raise@3", 1, 3),
        ("here:kill@4", 0, 3),
    ],
)
def test_acts_at_its_turn(plan, code, turns):
    done = run(plan)
    assert (done.returncode, len(done.stdout.split())) == (code, turns)


def test_soon_is_later_but_certain():
    assert run("here:soon", "soon").returncode == -signal.SIGKILL


def test_once_over_all_processes(tmp_path):
    token = {"MEMWORKER_FAIL_ONCE": str(tmp_path / "token")}
    assert run("here:exit", **token).returncode == failpoints.EXIT_STATUS
    assert run("here:exit", **token).returncode == 0


def test_a_pause_lasts_until_it_is_ended():
    child = subprocess.Popen(
        [sys.executable, "-c", PASS], env=os.environ | {"MEMWORKER_FAIL": "here:pause"}
    )
    with child:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        child.send_signal(signal.SIGCONT)
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(("plan", "written"), [("", b"0123456789"), ("here:kill", b"01234")])
def test_a_write_is_interrupted_in_its_midst(tmp_path, plan, written):
    path = tmp_path / "file"
    code = "from memworker import failpoints; failpoints.write('here', 1, b'0123456789')"
    environment = os.environ | {"MEMWORKER_FAIL": plan}
    with path.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, env=environment)
    assert path.read_bytes() == written


@pytest.mark.parametrize("wrong", ["here", "here:explode", ":kill", "here:kill@x"])
def test_a_misspelt_plan_is_refused(wrong):
    with pytest.raises(ValueError, match="MEMWORKER_FAIL"):
        failpoints.parse(wrong)
