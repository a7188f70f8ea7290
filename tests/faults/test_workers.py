"""Faults 1 to 14, 17, 24 to 26, 43, 44 and 48: workers, shared memory, surroundings."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import psutil
import pytest

from memworker import EmbeddingPool, ingest
from memworker.errors import TextFailed, TextTooLarge, UsageError, WorkerStartFailed
from tests import PATIENCE_S
from tests.faults.saboteur import Saboteur

ROOT = Path(__file__).parents[2]
# A deadline for whoever hangs; on a busy machine the others must keep it too.
STALL_S = 1.0
TEXTS = [f"text {number}" for number in range(500)]


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool(Saboteur(), workers=2) as pool:
        yield pool


def check(pool, texts=TEXTS):
    """Every text's own vector, in its own place."""
    assert pool.embed(texts)[:, 1].tolist() == [len(text) for text in texts]


def python(code, *args, timeout=PATIENCE_S, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        **{"capture_output": True, "text": True, "timeout": timeout, "cwd": ROOT, **options},
    )


@pytest.fixture
def failing_pool(monkeypatch, tmp_path):
    """A pool one of whose workers meets a failpoint once."""

    def make(failpoint, **options):
        monkeypatch.setenv("MEMWORKER_FAIL", failpoint)
        monkeypatch.setenv("MEMWORKER_FAIL_ONCE", str(tmp_path / "failed"))
        return EmbeddingPool("echo", workers=2, **options)

    return make


def test_01_idle_worker_killed(pool):
    before = pool.work.restarts
    os.kill(pool.worker_pids()[0], signal.SIGKILL)
    check(pool)
    check(pool)
    assert pool.work.restarts == before + 1


@pytest.mark.parametrize("point", ["mid_inference", "after_slot_write"], ids=["02", "03"])
def test_02_03_killed_before_the_message(failing_pool, tmp_path, point):
    with failing_pool(f"{point}:kill") as pool:
        check(pool)
        assert pool.work.restarts == 1 and pool.work.texts == len(TEXTS)
    assert (tmp_path / "failed").exists()


def test_04_killed_after_the_message_costs_no_retry(failing_pool):
    with failing_pool("after_message:kill") as pool:
        check(pool)
        assert pool.work.texts == len(TEXTS)
        check(pool)
        assert pool.work.restarts == 1


@pytest.mark.parametrize("action", ["kill", "pause"])
def test_05_killed_or_stopped_in_mid_message(failing_pool, action):
    with failing_pool(f"mid_message:{action}") as pool:
        check(pool)
        assert pool.work.restarts == 1


def test_06_all_workers_killed_together(pool):
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGKILL)
    check(pool)


def test_02_a_worker_killed_in_mid_shard_costs_nothing(pool, tmp_path):
    check(pool, [*TEXTS, f"once {tmp_path}/flag kill", *TEXTS])


def test_07_segmentation_fault_is_named_and_only_its_text_fails(pool):
    outcome = pool.submit_rows([*TEXTS, "segv", *TEXTS]).result(PATIENCE_S)
    assert list(outcome.failures) == [500]
    assert "SIGSEGV" in outcome.failures[500] and "pid" in outcome.failures[500]
    good = np.delete(outcome.vectors[:, 1], 500).tolist()
    assert good == [len(text) for text in TEXTS + TEXTS]
    with pytest.raises(TextFailed, match=r"texts\[1\].*3 workers") as caught:
        pool.embed(["good", "segv"])
    assert caught.value.index == 1


def test_08_a_text_that_kills_workers_is_rejected_with_its_line(tmp_path):
    path = tmp_path / "in.jsonl"
    texts = [*TEXTS[:99], "segv", *TEXTS[100:]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    report = ingest([path], db=tmp_path / "db", table="t", model=Saboteur(), workers=2)
    assert (report.written, report.rejected) == (499, 1)
    (reject,) = map(json.loads, Path(report.rejects).read_text().splitlines())
    assert (reject["path"], reject["line"]) == (str(path), 100)
    assert "SIGSEGV" in reject["reason"]


@pytest.mark.parametrize("action", ["stop", "hang"])
def test_09_a_hung_worker_is_ended_at_its_deadline(tmp_path, action):
    with EmbeddingPool(Saboteur(), workers=2, stall_timeout_s=STALL_S) as pool:
        check(pool)
        check(pool, [*TEXTS[:9], f"once {tmp_path}/flag {action}"])
        # At so short a deadline a busy machine may end another worker, at no cost either.
        assert pool.work.restarts >= 1


def test_09_a_stopped_worker_is_seen_whatever_its_deadline_is():
    # In hours there would be one.
    with EmbeddingPool(Saboteur(), workers=1, stall_timeout_s=10_000.0) as pool:
        (pid,) = pool.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        check(pool)
        assert pool.work.restarts == 1 and pool.worker_pids() != [pid]
        assert not psutil.pid_exists(pid)


@pytest.mark.long
def test_09_a_worker_that_computes_without_end_is_ended_in_seconds_one_that_steps_never():
    busy = [sys.executable, "-c", "while True: pass"]
    with EmbeddingPool(Saboteur(), workers=1) as pool, subprocess.Popen(busy) as one:
        with subprocess.Popen(busy) as two:
            try:
                check(pool)
                with pytest.raises(TextFailed, match="computed for .* s without a step"):
                    pool.embed(["spin"])
                check(pool)
                ended = pool.work.restarts
                check(pool, ["steps"])  # 8 s of processor time beside two others, in steps
                assert (ended, pool.work.restarts) == (3, 3)
            finally:
                one.kill()
                two.kill()


def test_09_a_text_that_always_hangs_is_reported():
    with EmbeddingPool(Saboteur(), workers=1, stall_timeout_s=STALL_S) as pool:
        check(pool)
        with pytest.raises(TextFailed, match="no sign of life"):
            pool.embed(["hang"])
        check(pool)


def test_10_what_runs_out_of_memory_is_halved(pool):
    before = pool.work.restarts
    texts = ["greedy", *TEXTS[:63]]
    check(pool, texts)
    assert pool.work.restarts > before
    with pytest.raises(TextFailed, match="SIGKILL, likely out of memory"):
        pool.embed(["kill"])


def test_11_an_exception_fails_its_text_alone(pool):
    outcome = pool.submit_rows([*TEXTS, "raise", *TEXTS]).result(PATIENCE_S)
    assert outcome.failures == {500: "ValueError: cannot encode this"}
    assert np.isnan(outcome.vectors[500]).all()
    assert not np.isnan(np.delete(outcome.vectors, 500, 0)).any()


def test_12_an_error_at_boot_is_fatal_at_once():
    with pytest.raises(WorkerStartFailed, match="RuntimeError: no such session"):
        EmbeddingPool(Saboteur(boot="raise"), workers=2).start()


def test_12_workers_that_die_while_starting_end_in_an_error():
    with pytest.raises(WorkerStartFailed, match="workers in a row.*SIGKILL.*memory"):
        EmbeddingPool(Saboteur(boot="kill"), workers=2, stall_timeout_s=1.5).start()


def test_13_a_worker_whose_memory_grows_is_replaced():
    with EmbeddingPool(Saboteur(), workers=1, memory_growth_bytes=64 << 20) as pool:
        (first,) = pool.worker_pids()
        for _ in range(9):
            check(pool)
        for _ in range(30):
            check(pool, ["leak"])
        assert pool.worker_pids() != [first]
        assert psutil.Process(pool.worker_pids()[0]).memory_info().rss < 512 << 20


PARENT = (
    "import sys\n"
    "from memworker import EmbeddingPool\n"
    "from tests.faults.saboteur import Saboteur\n"
    "pool = EmbeddingPool(Saboteur(), workers=2)\n"
    "future = pool.submit(['hang', 'hang'])\n"
    "print(*pool.worker_pids(), flush=True)\n"
    "future.result()\n"
)


def test_14_17_workers_leave_with_their_killed_parent():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        pids = {int(pid) for pid in parent.stdout.readline().split()}
        family = psutil.Process(parent.pid).children(recursive=True)
        # There is no resource tracker to kill: nothing has a name that it could clean up.
        assert {process.pid for process in family} == pids
        parent.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not alive


def test_14_a_stopped_worker_leaves_too():
    code = PARENT.replace("['hang', 'hang']", "['stop', 'stop']")
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        parent.stdout.readline()
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not alive


def in_small_shm(code):
    """Run code where /dev/shm and TMPDIR together hold 1 MB."""
    script = (
        'mount -t tmpfs -o size=1m none /dev/shm && export TMPDIR=/dev/shm && exec "$0" -c "$1"'
    )
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, code],
        **{"capture_output": True, "text": True, "timeout": PATIENCE_S, "cwd": ROOT},
    )


ONE_TEXT = (
    "from memworker import EmbeddingPool\n"
    "with EmbeddingPool('echo', workers=2) as pool: print(int(pool.embed(['four'])[0, 1]))\n"
)
WITHOUT_MEMFD = "import os; del os.memfd_create\n"

needs_mounts = pytest.mark.skipif(
    subprocess.run(
        ["sh", "-c", "unshare --mount mount -t tmpfs none /mnt"], capture_output=True
    ).returncode
    != 0,
    reason="a small /dev/shm needs the right to mount",
)


@needs_mounts
def test_24_a_small_dev_shm_does_not_matter():
    assert in_small_shm(ONE_TEXT).stdout == "4\n"


@needs_mounts
def test_24_25_too_little_memory_is_an_error_with_the_sizes():
    done = in_small_shm(WITHOUT_MEMFD + ONE_TEXT)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "SharedMemoryExhausted" in last and "MiB" in last


def test_25_without_memfd_a_file_without_a_name_does():
    assert python(WITHOUT_MEMFD + ONE_TEXT).stdout == "4\n"


def test_26_a_limit_on_open_files_is_named():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from memworker import EmbeddingPool, errors\n"
        "try: EmbeddingPool('echo', workers=40).start()\n"
        "except errors.WorkerStartFailed as error: print(error)\n"
    )
    done = python(code)
    assert "Too many open files" in done.stdout and "ulimit -n" in done.stdout, done.stderr


def test_43_deadlines_know_no_wall_clock():
    """The clock itself cannot be set here; nothing in the pool or the locks reads it."""
    paths = [(ROOT / "memworker" / room).glob("*.py") for room in ("pool", "locks")]
    for path in [*chain.from_iterable(paths), ROOT / "memworker/store/lock.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("time", "time"), path
                assert node.value.id != "datetime", path


def test_44_unguarded_script_stdin_and_prompt(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_TEXT)
    by_file = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    by_stdin = subprocess.run(
        [sys.executable, "-"], input=ONE_TEXT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    prompt = ONE_TEXT + "\nprint('still here')\n"
    by_prompt = subprocess.run(
        [sys.executable, "-iq"],
        **{"input": prompt, "capture_output": True, "text": True, "timeout": PATIENCE_S},
        # The prompt keeps a history in the home folder.
        env={**os.environ, "HOME": str(tmp_path), "MEMWORKER_CACHE": str(tmp_path)},
    )
    assert (by_file.stdout, by_stdin.stdout) == ("4\n", "4\n")
    assert by_prompt.stdout == "4\nstill here\n"
    assert by_file.stderr == by_stdin.stderr == ""


def test_44_an_encoder_defined_in_the_script_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from memworker import EmbeddingPool\n"
        "class Ones:\n"
        "    dim = 3\n"
        "    def __call__(self): return self\n"
        "    def encode(self, texts, rows):\n"
        "        rows.vectors[:] = 1; rows.status[:] = 0; yield\n"
        "print(EmbeddingPool(Ones(), workers=1).embed(['a', 'b']).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]\n", done.stderr


def test_a_large_query_is_split_into_slots_that_hold_it(pool, tmp_path):
    texts = ["x" * 300_000, *["a"] * 200, f"once {tmp_path}/flag kill"]
    vectors = pool.embed(texts, kind="query")
    assert vectors[:, 1].tolist() == [len(text) for text in texts]


def test_a_keyboard_interrupt_leaves_the_pool_usable(tmp_path):
    code = (
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from memworker import EmbeddingPool\n"
        "from tests.faults.harness import wait_for\n"
        "from tests.faults.loaders import Gated\n"
        "gate, begun = sys.argv[1:]\n"
        "pool = EmbeddingPool(Gated(gate, begun), workers=1)\n"
        "def interrupt():\n"
        "    wait_for(Path(begun).exists)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    threading.Thread(target=interrupt).start()\n"
        "    pool.embed(['waits'])\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "Path(gate).touch()\n"
        "print(int(pool.embed(['four'])[0, 1]))\n"
    )
    done = python(code, tmp_path / "gate", tmp_path / "begun")
    assert done.stdout == "interrupted\n4\n", done.stderr


def test_48_a_text_larger_than_a_slot_is_refused_by_name():
    with EmbeddingPool("echo", workers=1, max_text_bytes=3 << 20) as pool:
        assert pool.embed(["z" * (3 << 20)])[0, 1] == 3 << 20
        with pytest.raises(TextTooLarge, match=r"texts\[1\] has 3,145,729 bytes"):
            pool.embed(["a", "z" * ((3 << 20) + 1)])


def test_more_workers_than_the_machine_can_hold_are_refused():
    with pytest.raises(UsageError, match="100000 workers.*MiB.*this machine has"):
        EmbeddingPool("echo", workers=100_000)


def test_26_a_failed_start_leaves_no_descriptor_behind():
    code = (
        "import os, resource\n"
        "from memworker import EmbeddingPool, errors\n"
        "EmbeddingPool('echo', workers=1).start().close()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(3):\n"
        "    try: EmbeddingPool('echo', workers=40).start()\n"
        "    except errors.WorkerStartFailed: pass\n"
        "print(len(os.listdir('/proc/self/fd')) - before)\n"
    )
    assert python(code).stdout == "0\n"


def test_a_stopped_and_continued_job_blames_nobody():
    """As Ctrl-Z and fg do: the parent sleeps through its workers' deadlines."""
    code = (
        "import os, signal, subprocess, sys\n"
        "from memworker import EmbeddingPool\n"
        "from tests.faults.saboteur import Saboteur\n"
        "with EmbeddingPool(Saboteur(), workers=1, stall_timeout_s=3) as pool:\n"
        "    pool.embed(['a'])\n"
        "    group = [os.getpid(), *pool.worker_pids()]\n"
        "    wake = 'import os, signal, sys, time; time.sleep(5)\\n'\n"
        "    wake += 'for pid in sys.argv[1:]: os.kill(int(pid), signal.SIGCONT)'\n"
        "    future = pool.submit(['busy'] * 3)\n"
        "    subprocess.Popen([sys.executable, '-c', wake, *map(str, reversed(group))])\n"
        "    for pid in reversed(group): os.kill(pid, signal.SIGSTOP)\n"
        "    future.result(200)\n"
        "    print(pool.work.restarts)\n"
    )
    assert python(code).stdout == "0\n"


def test_a_bad_text_among_gathered_requests_fails_its_own_request_alone(pool):
    futures = [pool.submit([text]) for text in [*TEXTS[:50], "segv", "raise", *TEXTS[50:100]]]
    for number in (50, 51):
        with pytest.raises(TextFailed):
            futures[number].result(PATIENCE_S)
    good = futures[:50] + futures[52:]
    lengths = [int(future.result(PATIENCE_S)[0, 1]) for future in good]
    assert lengths == [len(text) for text in TEXTS[:100]]
