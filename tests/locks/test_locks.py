"""Locks of every kind, between real processes that are really killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from memworker.locks import Busy, FileLock, LockKind, Lost, Process, Unsupported, holder_of
from memworker.locks.kinds import kind_in
from tests.preload import preload  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
LEASE_S = 1.5

# Holds the lock until told otherwise, and then says whether it held it all the while.
HOLDER = """
import sys, time
from pathlib import Path
from memworker.locks import FileLock, Lost
lock = FileLock(Path(sys.argv[1]), shared=sys.argv[2] == "shared", lease_s=float(sys.argv[3]))
lock.acquire(10)
print("held", flush=True)
sys.stdin.readline()
try:
    lock.confirm()
    print("kept", flush=True)
except Lost as lost:
    print("lost", lost, flush=True)
lock.release()
sys.stdin.readline()
"""

# Adds one to a number in a file so often, without any protection but the lock.
COUNTER = """
import sys
from pathlib import Path
from memworker.locks import FileLock
path, file, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    lock = FileLock(path)
    lock.acquire(50)
    with lock:
        number = int(file.read_text())
        lock.confirm()
        file.write_text(str(number + 1))
"""

KINDS = {
    "flock": {},
    "record": {"NOLOCKS": "flock", "NOLOCKS_ERR": "ENOLCK"},
    "lease": {"NOLOCKS": "flock,record", "NOLOCKS_ERR": "EOPNOTSUPP"},
}


@pytest.fixture(params=sorted(KINDS))
def kind(request, preload, tmp_path):  # noqa: F811
    """The environment of processes for which a kind of lock is what the file system has."""
    settings = KINDS[request.param]
    agree(tmp_path / "locks", request.param)
    return preload("nolocks", **settings) if settings else {}


def agree(folder, kind):
    folder.mkdir(exist_ok=True)
    (folder / f"locking-{folder.stat().st_ino}").write_text(kind)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "locks").mkdir(exist_ok=True)
    return tmp_path / "locks/commit.lock"


class Talker:
    """A process that says a line at a time, and is told when to go on."""

    def __init__(self, popen):
        self.popen, self.pid = popen, popen.pid

    def wait_for(self, word):
        line = self.popen.stdout.readline()
        assert line.startswith(word), line
        return line

    def go_on(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()


@contextmanager
def process(script, *arguments, env=None, prefix=()):
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | (env or {}), **pipes) as popen:
        try:
            yield Talker(popen)
        finally:
            popen.kill()


def refused(path, **options):
    """Tell who is said to hold a lock that must not be had."""
    with pytest.raises(Busy) as busy:
        FileLock(path, **options).acquire()
    return busy.value.holder


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_works_here_is_found_out_and_noted(preload, path, name, error):  # noqa: F811
    env = preload("nolocks", **KINDS[name] | {"NOLOCKS_ERR": error})
    code = (
        "import sys; from pathlib import Path; from memworker.locks.kinds import kind_in\n"
        "print(kind_in(Path(sys.argv[1])))"
    )
    with process(code, path.parent, env=env) as one:
        one.wait_for(name)
    assert kind_in(path.parent) == name


def test_one_holds_and_others_are_told_who(kind, path):
    with process(HOLDER, path, "alone", 30, env=kind) as holder:
        holder.wait_for("held")
        assert refused(path).pid == holder.pid == holder_of(path).pid
        assert refused(path, shared=True)
        holder.go_on()
        holder.wait_for("kept")
        FileLock(path).acquire(10)


def test_threads_of_one_process_exclude_each_other_too(kind, path):
    lock = FileLock(path)
    lock.acquire()
    assert refused(path).pid == os.getpid()
    lock.confirm()
    lock.release()
    assert holder_of(path) is None
    with pytest.raises(Lost):
        lock.confirm()


def test_a_killed_holder_is_followed_at_once(kind, path):
    with process(HOLDER, path, "alone", 30, env=kind) as holder:
        holder.wait_for("held")
        holder.popen.kill()
        # Its exit is not waited for: what is dead and not buried yet holds nothing.
        FileLock(path).acquire(5)


def test_readers_share_and_keep_a_writer_away(kind, path):
    with (
        process(HOLDER, path, "shared", 30, env=kind) as one,
        process(HOLDER, path, "shared", 30, env=kind) as two,
    ):
        one.wait_for("held")
        two.wait_for("held")
        refused(path)
        one.go_on()
        one.wait_for("kept")
        refused(path)
        two.popen.kill()
        writer = FileLock(path)
        writer.acquire(5)
        assert refused(path, shared=True).pid == os.getpid()
        writer.release()
        FileLock(path, shared=True).acquire()


def test_processes_that_take_turns_lose_no_count(kind, path, tmp_path):
    number, rounds = tmp_path / "number", 60
    number.write_text("0")
    with (
        process(COUNTER, path, number, rounds, env=kind) as one,
        process(COUNTER, path, number, rounds, env=kind) as two,
        process(COUNTER, path, number, rounds, env=kind) as three,
    ):
        assert [each.popen.wait(60) for each in (one, two, three)] == [0, 0, 0]
    assert number.read_text() == str(3 * rounds)


def test_a_lock_whose_file_is_removed_is_lost_and_not_held_twice(kind, path):
    with process(HOLDER, path, "alone", 30, env=kind) as holder:
        holder.wait_for("held")
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        other = FileLock(path)
        other.acquire()
        other.confirm()
        holder.go_on()
        holder.wait_for("lost")
        other.confirm()
        other.release()


def test_a_child_of_fork_holds_nothing(kind, path):
    with process(FORKER, path, env=kind) as parent:
        child = int(parent.wait_for("child ").split()[1])
        assert refused(path).pid == parent.pid
        parent.popen.kill()
        parent.popen.wait()
        try:
            FileLock(path).acquire(5)
        finally:
            os.kill(child, signal.SIGKILL)


FORKER = """
import os, sys, time
from pathlib import Path
from memworker.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
if child := os.fork():
    print("child", child, flush=True)
    sys.stdin.readline()
else:
    with lock:
        pass  # what the parent holds is not the child's to free
    os.close(0), os.close(1)
    time.sleep(60)
"""


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_no_other_kind_is_taken_where_others_hold_theirs(preload, path, error):  # noqa: F811
    """Else flock failing for one process alone would make two holders."""
    ours = FileLock(path)
    ours.acquire()
    env = preload("nolocks", NOLOCKS="flock", NOLOCKS_ERR=error)
    code = (
        "import sys; from pathlib import Path; from memworker.locks import FileLock, Unsupported\n"
        "try: FileLock(Path(sys.argv[1])).acquire(0.1)\n"
        "except Unsupported as error: print('unsupported', error)"
    )
    with process(code, path, env=env) as other:
        assert "kind 'flock'" in other.wait_for("unsupported")


def test_a_copied_folder_finds_out_anew(tmp_path, path):
    assert kind_in(path.parent) is LockKind.FLOCK
    note = next(path.parent.glob("locking-*"))
    note.write_text("lease")
    copy = tmp_path / "copy"
    shutil.copytree(path.parent, copy)
    assert kind_in(copy) is LockKind.FLOCK
    assert [each.name for each in copy.glob("locking-*")] == [f"locking-{copy.stat().st_ino}"]


def test_a_torn_note_is_written_again(path):
    note = path.parent / f"locking-{path.parent.stat().st_ino}"
    note.write_bytes(b"")
    assert kind_in(path.parent) is LockKind.FLOCK and note.read_text() == "flock"


def test_unlocked_by_an_error_and_by_with(path):
    lock = FileLock(path)
    lock.acquire()
    with pytest.raises(KeyError), lock:
        raise KeyError
    FileLock(path).acquire()


def test_a_name_that_cannot_be_written_down_stops_nobody(path):
    agree(path.parent, "flock")
    code = (
        "import resource, sys; from pathlib import Path; from memworker.locks import FileLock\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "lock = FileLock(Path(sys.argv[1])); lock.acquire(); lock.confirm(); print('held')\n"
        "sys.stdout.flush(); sys.stdin.readline()"
    )
    with process(code, path) as holder:
        holder.wait_for("held")
        assert refused(path) is None and holder_of(path).pid == 0


# ── leases, whose holder may be on another machine ──


@pytest.fixture
def lease(preload, path):  # noqa: F811
    """The environment of processes on a file system that knows no locks at all."""
    agree(path.parent, "lease")
    return preload("nolocks", **KINDS["lease"])


@pytest.fixture
def elsewhere():
    """A prefix that starts a process where its pid is not ours, as on another machine."""
    prefix = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("needs a name space of pids, which only root may make")
    return prefix


def test_another_machines_lease_is_waited_for_while_it_counts_on(lease, path, elsewhere):
    with process(HOLDER, path, "alone", LEASE_S, env=lease, prefix=elsewhere) as holder:
        holder.wait_for("held")
        began = time.monotonic()
        # No timeout, and yet it is found out whether somebody is there.
        refused(path, lease_s=LEASE_S)
        for _ in range(3):
            with pytest.raises(Busy):
                FileLock(path, lease_s=LEASE_S).acquire(LEASE_S)
        assert time.monotonic() - began > 3 * LEASE_S
        holder.go_on()
        holder.wait_for("kept")


@pytest.mark.parametrize("way", ["alone", "shared"])
def test_a_holder_killed_on_another_machine_keeps_it_for_one_lease_only(
    lease, path, elsewhere, way
):
    with process(HOLDER, path, way, LEASE_S, env=lease, prefix=elsewhere) as holder:
        holder.wait_for("held")
        holder.popen.kill()
        holder.popen.wait()
        began = time.monotonic()
        lock = FileLock(path, lease_s=LEASE_S)
        lock.acquire()
        assert time.monotonic() - began >= LEASE_S
        lock.confirm()
        lock.release()
    assert len(list(path.parent.glob("commit.lock.*"))) == 1


def test_a_stopped_holder_notices_that_it_was_followed(lease, path, elsewhere):
    with process(HOLDER, path, "alone", LEASE_S, env=lease, prefix=elsewhere) as holder:
        holder.wait_for("held")
        inner = child_of(holder.pid)
        os.kill(inner, signal.SIGSTOP)
        lock = FileLock(path, lease_s=LEASE_S)
        lock.acquire(10)
        os.kill(inner, signal.SIGCONT)
        holder.go_on()
        holder.wait_for("lost")
        lock.confirm()
        lock.release()
        # Nor has its release freed what is not its own any more.
        lock.acquire()
        lock.confirm()
        lock.release()


def child_of(pid):
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_many_who_wait_for_a_dead_machine_become_one_holder(lease, path, elsewhere, tmp_path):
    with process(HOLDER, path, "alone", LEASE_S, env=lease, prefix=elsewhere) as holder:
        holder.wait_for("held")
        holder.popen.kill()
    number = tmp_path / "number"
    number.write_text("0")
    script = COUNTER.replace("FileLock(path)", f"FileLock(path, lease_s={LEASE_S})")
    with (
        process(script, path, number, 10, env=lease) as one,
        process(script, path, number, 10, env=lease) as two,
        process(script, path, number, 10, env=lease) as three,
    ):
        assert [each.popen.wait(60) for each in (one, two, three)] == [0, 0, 0]
    assert number.read_text() == "30"


def test_a_page_left_empty_by_a_kill_is_passed_over_after_a_lease(lease, path):
    path.with_name("commit.lock.lease-3").touch()
    lock = FileLock(path, lease_s=LEASE_S)
    lock.acquire()
    lock.release()
    assert [each.name for each in path.parent.glob("commit.lock.*")] == ["commit.lock.lease-4"]


def test_a_pid_that_was_given_again_is_another_process(lease, path):
    current = Process.current()
    assert current.is_local and not current.is_gone
    former = Process(current.pid, current.host, current.realm, "1")
    assert former.is_gone
    page = {"token": "x", "process": {**as_dict(current), "started": "1"}, "beat": 0, "free": False}
    path.with_name("commit.lock.lease-1").write_text(json.dumps(page))
    FileLock(path).acquire()


def as_dict(process):
    return {name: getattr(process, name) for name in ("pid", "host", "realm", "started")}


def test_errors_are_those_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "no/such/folder/lock").acquire()
    assert holder_of(tmp_path / "no/such/lock") is None
    assert issubclass(Unsupported, OSError)
