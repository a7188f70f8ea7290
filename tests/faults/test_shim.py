"""The preloaded library itself: it sees every call on the files concerned, and fails the n-th."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from tests.faults.every_call import shim
from tests.faults.every_call.shim import NOTHING, Action, Control, Fault, Kind

pytestmark = pytest.mark.skipif(shim.compiler() is None, reason="needs a C compiler")

# Every kind of call, each with its outcome; a rename also without libc.
DEEDS = """
import ctypes, fcntl, json, mmap, os, platform, sys
folder = sys.argv[1]
path, other = f"{folder}/file", f"{folder}/other"
told, maps = {}, []

def tell(name, deed):
    try:
        told[name] = deed()
    except OSError as error:
        told[name] = f"error {error.errno}"

def raw_rename():
    libc = ctypes.CDLL(None, use_errno=True)
    renameat = {"x86_64": 264, "aarch64": 38}[platform.machine()]
    if libc.syscall(renameat, -100, other.encode(), -100, path.encode()):
        raise OSError(ctypes.get_errno(), "rename")

tell("mkdir", lambda: os.mkdir(f"{folder}/inner"))
tell("create", lambda: os.close(os.open(path, os.O_RDONLY | os.O_CREAT)))
tell("open", lambda: os.open(path, os.O_RDWR))
fd = told["open"] if isinstance(told["open"], int) else os.open("/dev/null", os.O_RDWR)
tell("flock", lambda: fcntl.flock(fd, fcntl.LOCK_EX))
tell("write", lambda: os.write(fd, b"0123456789"))
tell("fsync", lambda: os.fsync(fd))
tell("truncate", lambda: os.ftruncate(fd, 10))
tell("mmap", lambda: maps.append(mmap.mmap(fd, 10)))
tell("close", lambda: os.close(fd))
tell("link", lambda: os.link(path, other))
tell("unlink", lambda: os.unlink(path))
tell("raw rename", raw_rename)
tell("rename", lambda: os.rename(path, other))
tell("there", lambda: sorted(os.listdir(folder)))
print(json.dumps(told), flush=True)
# The map holds a descriptor, whose closing at the end would be counted.
os._exit(0)
"""
ONE_EACH = [
    *(
        Kind.MKDIR,
        Kind.CREATE,
        Kind.OPEN,
        Kind.FLOCK,
        Kind.WRITE,
        Kind.FSYNC,
        Kind.TRUNCATE,
        Kind.MMAP,
    ),
    *(Kind.CLOSE, Kind.LINK, Kind.UNLINK, Kind.RENAME, Kind.RENAME),
]
ALL_WELL = {"flock": None, "write": 10, "mmap": None, "there": ["inner", "other"]}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return shim.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def obeys(tmp_path, library):
    """Give a function that runs the deeds under a fault: status, what they told, the calls."""
    control = Control(tmp_path / "control")
    folder = tmp_path / "watched"

    def run(fault):
        folder.mkdir(exist_ok=True)
        control.prepare(fault, (f"{folder}/",))
        control.arm()
        done = subprocess.run(
            [sys.executable, "-c", DEEDS, folder],
            env=control.environment(library),
            capture_output=True,
            text=True,
            timeout=30,
        )
        control.disarm()
        assert control.sees_all, "seccomp is not to be had here"
        return done.returncode, json.loads(done.stdout or "{}"), list(control.calls())

    return run


def test_every_call_is_seen_once(obeys):
    status, told, calls = obeys(NOTHING)
    assert status == 0 and told.items() >= ALL_WELL.items()
    assert [call.kind for call in calls] == ONE_EACH
    assert {call.outcome for call in calls} == {shim.WENT_WELL}


def test_calls_elsewhere_are_left_alone(obeys):
    fault = Fault(tuple(Kind), 1, Action.FAIL, errno.EIO, after=tuple(Kind), where="no such path")
    _, told, calls = obeys(fault)
    assert told.items() >= ALL_WELL.items()
    assert not any(call.injected for call in calls)


@pytest.mark.parametrize("kind", sorted(set(ONE_EACH)), ids=lambda kind: kind.name.lower())
def test_the_first_of_a_kind_fails(obeys, kind):
    _, told, calls = obeys(Fault((kind,), 1, Action.FAIL, errno.ENOSPC))
    failed = [call for call in calls if call.injected]
    assert [(call.kind, call.outcome) for call in failed] == [(kind, errno.ENOSPC)]
    assert told["raw rename" if kind is Kind.RENAME else kind.name.lower()] == "error 28"


def test_the_second_rename_fails_after_it_was_done(obeys):
    _, told, calls = obeys(Fault((Kind.RENAME,), 2, Action.FAIL_DONE, errno.EIO))
    assert told["rename"] == "error 5" and told["there"] == ["inner", "other"]
    assert [call.injected for call in calls if call.kind is Kind.RENAME] == [
        Action.COUNT,
        Action.FAIL_DONE,
    ]


def test_from_then_on_all_fail(obeys):
    names = (Kind.LINK, Kind.UNLINK, Kind.RENAME)
    _, told, _ = obeys(Fault(names, 2, Action.FAIL, errno.EIO, after=names))
    assert told["link"] is None
    assert [told[name] for name in ("unlink", "raw rename", "rename")] == ["error 5"] * 3


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.RENAME], ids=lambda kind: kind.name.lower())
def test_a_process_is_killed_before_its_call(obeys, kind, tmp_path):
    status, told, calls = obeys(Fault((kind,), 1, Action.KILL))
    assert status == -9 and not told
    assert calls[-1].kind is kind and calls[-1].outcome == shim.WAS_KILLED
    file = tmp_path / "watched" / ("file" if kind is Kind.WRITE else "other")
    assert file.stat().st_size == (0 if kind is Kind.WRITE else 10)


@pytest.mark.parametrize("action", [Action.SHORT, Action.TEAR], ids=lambda a: a.name.lower())
def test_half_of_a_write(obeys, action, tmp_path):
    status, told, _ = obeys(Fault((Kind.WRITE,), 1, action))
    if action is Action.TEAR:
        assert status == -9
        assert (tmp_path / "watched/file").read_bytes() == b"01234"
    else:
        assert told["write"] == 5
