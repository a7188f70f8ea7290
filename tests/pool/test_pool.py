"""The pool's contract, on real worker processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import CancelledError

import numpy as np
import pytest

from memworker import EmbeddingPool
from memworker.errors import PoolClosed, PoolForked, TextFailed, TextTooLarge, UsageError
from memworker.pool import spawn as spawning
from tests import PATIENCE_S
from tests.faults.loaders import Gated


@pytest.fixture(scope="module")
def echo():
    with EmbeddingPool("echo", workers=2) as pool:
        yield pool


def lengths(texts):
    return [len(text.encode()) for text in texts]


TEXTS = [("wörter " * (number * 7919 % 97))[: number % 531] for number in range(9000)]


def test_vectors_come_back_in_input_order(echo):
    vectors = echo.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), echo.dim) and vectors.dtype == np.float32
    assert vectors[:, 1].tolist() == lengths(TEXTS)


def test_streams_in_order_and_lazily(echo):
    taken = 0

    def source():
        nonlocal taken
        for text in TEXTS:
            taken += 1
            yield text

    stream = echo.embed_batches(source(), batch_size=100)
    first, vectors = next(stream)
    assert first == TEXTS[:100] and vectors[:, 1].tolist() == lengths(first)
    assert taken < 1000
    seen = first + [text for batch, _ in stream for text in batch]
    assert seen == TEXTS


def test_no_texts_give_no_rows(echo):
    assert echo.embed([]).shape == (0, echo.dim)
    assert list(echo.embed_batches([])) == []


def test_empty_text_is_embedded(echo):
    assert np.isfinite(echo.embed([""])).all()


@pytest.mark.parametrize("bad", [None, 7, b"bytes", ["list"]])
def test_refuses_what_is_not_str_and_names_the_place(echo, bad):
    with pytest.raises(TypeError, match=r"texts\[1\] is"):
        echo.embed(["good", bad])


def test_refuses_one_bare_string(echo):
    with pytest.raises(TypeError, match=r"\[text\]"):
        echo.embed("a text")


def test_lone_surrogate_is_named(echo):
    with pytest.raises(TextFailed, match=r"texts\[2\].*surrogate") as caught:
        echo.embed(["a", "b", "c\ud800"])
    assert caught.value.index == 2


def test_text_over_the_cap_is_refused_by_name():
    with EmbeddingPool("echo", workers=1, max_text_bytes=100) as pool:
        with pytest.raises(TextTooLarge, match=r"texts\[1\] has 101 bytes"):
            pool.embed(["x" * 100, "y" * 101])


def test_a_text_as_large_as_the_cap_fits(echo):
    assert echo.embed(["z" * (1 << 20)])[0, 1] == 1 << 20


def test_concurrent_requests_do_not_mix(echo):
    futures = [echo.submit(TEXTS[start : start + 37]) for start in range(0, 3700, 37)]
    for start, future in zip(range(0, 3700, 37), futures, strict=True):
        assert future.result(PATIENCE_S)[:, 1].tolist() == lengths(TEXTS[start : start + 37])


def test_queries_take_the_urgent_way(echo):
    assert echo.embed(["a question"], kind="query")[0, 1] == 10
    with pytest.raises(UsageError, match="kind"):
        echo.embed(["x"], kind="question")


def test_killed_idle_worker_is_replaced(echo):
    before = echo.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    assert echo.embed(TEXTS)[:, 1].tolist() == lengths(TEXTS)
    assert echo.embed(TEXTS)[:, 1].tolist() == lengths(TEXTS)


def test_closed_pool_says_so():
    pool = EmbeddingPool("echo", workers=1).start()
    pool.close()
    pool.close()
    for use in (pool.start, lambda: pool.embed(["x"])):
        with pytest.raises(PoolClosed):
            use()


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": -1}, {"max_text_bytes": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError):
        EmbeddingPool("echo", **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_that_ends_leaves_the_workers_alone_and_says_nothing():
    """As a server that loads its application before it forks, such as gunicorn --preload."""
    code = (
        "import os, sys\n"
        "from memworker import EmbeddingPool\n"
        "pool = EmbeddingPool('echo', workers=1).start()\n"
        "before = pool.worker_pids()\n"
        "if (child := os.fork()) == 0:\n"
        "    sys.exit(3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
        "pool.embed(['x'])\n"
        "assert pool.worker_pids() == before, 'the child has ended a worker'\n"
        "pool.close()\n"
    )
    # From 3.12 on Python warns of any fork beside threads, which ours are.
    quiet = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", quiet, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_gets_pool_forked(echo):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            echo.embed(["x"])
            os.write(writer, b"embedded")
        except PoolForked:
            os.write(writer, b"PoolForked")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"PoolForked"
    os.close(reader)
    os.close(writer)
    assert echo.embed(["still here"])[0, 1] == 10


def test_unguarded_script_and_stdin_just_work(tmp_path):
    code = (
        "from memworker import EmbeddingPool\n"
        "pool = EmbeddingPool('echo', workers=2)\n"
        "print(int(pool.embed(['four'])[0, 1]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    by_file = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    by_stdin = subprocess.run(
        [sys.executable, "-"],
        input=code,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert (by_file.stdout, by_stdin.stdout) == ("4\n", "4\n")
    assert by_file.stderr == by_stdin.stderr == ""


def test_parent_never_loads_onnxruntime():
    code = (
        "import sys; from memworker import EmbeddingPool\n"
        "with EmbeddingPool(workers=1) as pool: pool.embed(['a text'])\n"
        "print([name for name in ('onnxruntime', 'tokenizers', 'lancedb') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == "[]\n", done.stderr


def test_cancelled_work_is_dropped(echo):
    future = echo.submit(TEXTS)
    future.cancel()
    with pytest.raises(CancelledError):
        future.result(PATIENCE_S)
    assert echo.embed(["next"])[0, 1] == 4


def test_small_requests_share_session_runs(tmp_path):
    """While all workers are busy, what waits is gathered; each gets its own rows."""
    gate = tmp_path / "gate"
    with EmbeddingPool(Gated(str(gate), str(tmp_path / "begun")), workers=2) as pool:
        futures = [pool.submit([f"request {number}", "x" * (number % 7)]) for number in range(500)]
        gate.touch()
        for number, future in enumerate(futures):
            wanted = [len(f"request {number}"), number % 7]
            assert future.result(PATIENCE_S)[:, 1].tolist() == wanted
        assert pool.work.shards < 50


def test_a_cancelled_request_among_gathered_ones(echo):
    futures = [echo.submit([f"request {number}"]) for number in range(300)]
    dropped = {number for number in range(0, 300, 7) if futures[number].cancel()}
    for number, future in enumerate(futures):
        if number not in dropped:
            assert future.result(PATIENCE_S)[0, 1] == len(f"request {number}")


def test_a_worker_that_dies_before_it_has_read_its_task_is_one_more_death(monkeypatch):
    monkeypatch.setattr(spawning.spawn, "get_executable", lambda: shutil.which("true").encode())
    # More than a pipe holds, so that the death comes in the midst of the writing.
    monkeypatch.setattr(spawning._Popen, "_payload", lambda self, process: bytes(1 << 20))
    process = spawning._WorkerProcess(target=print)
    process.channel = 0
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
