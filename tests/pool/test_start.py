"""When workers start: at the first text, by `start` or `with`; once, and again after a failure."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from memworker import AsyncEmbeddingPool, EmbeddingPool, Memory
from memworker.errors import (
    ModelError,
    PoolClosed,
    PoolForked,
    TableMismatch,
    UsageError,
    WorkerStartFailed,
)
from memworker.pool.echo import EchoEncoder, EchoLoader
from memworker.pool.opening import PoolOptions, borrowed_or_own
from tests import PATIENCE_S
from tests.faults.harness import wait_for
from tests.serve.loaders import LoadsUnless, SlowStart


@dataclass(frozen=True)
class Counted:
    """Notes each start in a file, and loads, or fails, once another one is there."""

    boots: str
    gate: str
    fails: bool = False
    dim: int = 8

    def __call__(self):
        with open(self.boots, "a") as file:
            file.write("boot\n")
        SlowStart(self.gate)()
        if self.fails:
            raise RuntimeError("no such session")
        return EchoEncoder(self.dim)


@pytest.fixture
def counted(tmp_path):
    return Counted(str(tmp_path / "boots"), str(tmp_path / "gate"))


def boots(loader):
    return len(Path(loader.boots).read_text().split())


def children():
    return psutil.Process().children()


def all_inside(threads, function):
    """Tell whether every thread has come as far as a function of this name."""
    frames = sys._current_frames()
    return all(_is_inside(frames.get(thread.ident), function) for thread in threads)


def _is_inside(frame, function):
    while frame is not None:
        if frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False


def started_by_many(pool, count=6):
    """Give each of several threads' first vector or error, and the threads."""
    ends = []

    def first():
        try:
            ends.append(float(pool.embed(["four"])[0, 1]))
        except Exception as error:
            ends.append(error)

    threads = [threading.Thread(target=first) for _ in range(count)]
    for thread in threads:
        thread.start()
    return ends, threads


def test_what_a_pool_is_is_known_before_it_starts():
    before = children()
    pool = EmbeddingPool("all-MiniLM-L6-v2", workers=2)
    assert (pool.dim, pool.identity.dim, pool.identity.normalized) == (384, 384, True)
    assert (pool.workers, pool.started, pool.max_text_bytes) == (2, False, 1 << 20)
    assert (pool.pending_tokens, pool.busy_workers, pool.ready_workers) == (0, 0, 0)
    assert pool.worker_pids() == [] and pool.work.texts == 0
    assert children() == before
    pool.close()


def test_what_is_wrong_with_the_arguments_is_said_at_once():
    with pytest.raises(ModelError):
        EmbeddingPool("there-is-no-such-model")
    for options in ({"workers": 0}, {"precision": "fp8"}, {"memory": "much"}, {"max_tokens": 0}):
        with pytest.raises(UsageError):
            EmbeddingPool("echo", **options)


@pytest.mark.parametrize("begin", ["embed", "submit", "submit_tokens", "stream", "start", "with"])
def test_each_way_to_begin_starts_once(begin):
    pool = EmbeddingPool("echo", workers=1)
    made_s = pool.startup_seconds
    uses = {
        "embed": lambda: pool.embed(["a"]),
        "submit": lambda: pool.submit(["a"]).result(PATIENCE_S),
        "submit_tokens": lambda: pool.submit_tokens([[1]]).result(PATIENCE_S),
        "stream": lambda: list(pool.stream([["a"]])),
        "start": pool.start,
        "with": pool.__enter__,
    }
    try:
        uses[begin]()
        pids = pool.worker_pids()
        assert pool.started and len(pids) == 1 and pool.startup_seconds > made_s
        assert pool.start() is pool
        pool.embed(["b"])
        assert pool.worker_pids() == pids
    finally:
        pool.close()
    assert not psutil.pid_exists(pids[0])


def test_threads_that_use_it_first_at_once_start_it_once(counted):
    with borrowed_or_own(None, PoolOptions(counted, workers=1)) as pool:
        ends, threads = started_by_many(pool)
        wait_for(lambda: all_inside(threads, "_running"))
        Path(counted.gate).touch()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert ends == [4.0] * 6 and boots(counted) == 1


def test_a_failed_start_is_told_to_all_who_waited_and_tried_again_by_the_next(tmp_path):
    loader = Counted(str(tmp_path / "boots"), str(tmp_path / "gate"), fails=True)
    pool = EmbeddingPool(loader, workers=1)
    ends, threads = started_by_many(pool)
    wait_for(lambda: all_inside(threads, "_running"))
    Path(loader.gate).touch()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [type(end) for end in ends] == [WorkerStartFailed] * 6
    assert boots(loader) == 1 and not pool.started
    with pytest.raises(WorkerStartFailed, match="no such session"):
        pool.start()
    assert boots(loader) == 2


def test_a_start_that_failed_may_succeed_later(tmp_path):
    marker = tmp_path / "marker"
    marker.touch()
    with borrowed_or_own(None, PoolOptions(LoadsUnless(str(marker)), workers=1)) as pool:
        before = children()
        for _ in range(2):
            with pytest.raises(WorkerStartFailed, match="could not start"):
                pool.embed(["four"])
            assert children() == before
        marker.unlink()
        assert pool.embed(["four"])[0, 1] == 4.0


def test_a_pool_that_was_closed_before_it_started_never_does():
    before = children()
    pool = EmbeddingPool("echo", workers=1)
    pool.close()
    for use in (pool.start, pool.__enter__, lambda: pool.embed(["a"])):
        with pytest.raises(PoolClosed, match="make a new"):
            use()
    assert children() == before and not pool.started


def test_a_pool_that_is_closed_while_it_starts(counted):
    before = children()
    pool = EmbeddingPool(counted, workers=1)
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(pool.start)
        wait_for(Path(counted.boots).exists)
        pool.close()
        with pytest.raises(PoolClosed):
            starting.result(PATIENCE_S)
    assert children() == before
    with pytest.raises(PoolClosed):
        pool.embed(["a"])


def test_ctrl_c_while_it_starts_ends_that_start_alone(tmp_path):
    code = (
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "import psutil\n"
        "from memworker import EmbeddingPool\n"
        "from tests.faults.harness import wait_for\n"
        "from tests.pool.test_start import Counted\n"
        "loader = Counted(*sys.argv[1:])\n"
        "pool = EmbeddingPool(loader, workers=1)\n"
        "def interrupt():\n"
        "    wait_for(Path(loader.boots).exists)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt).start()\n"
        "try: pool.start()\n"
        "except KeyboardInterrupt: print(len(psutil.Process().children()), pool.started)\n"
        "Path(loader.gate).touch()\n"
        "print(int(pool.embed(['four'])[0, 1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "boots"), str(tmp_path / "gate")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "0 False\n4\n", done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_of_fork_can_neither_start_nor_close_it():
    pool = EmbeddingPool("echo", workers=1)
    reader, writer = os.pipe()
    # As where another thread starts it at the moment of the fork.
    with pool._starting:
        pid = os.fork()
        if pid == 0:
            try:
                pool.close()
                pool.start()
            except PoolForked:
                os.write(writer, b"PoolForked")
            finally:
                os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"PoolForked"
    os.close(reader)
    os.close(writer)
    with pool:
        assert pool.embed(["four"])[0, 1] == 4.0


def test_a_borrowed_pool_stays_open_and_an_own_one_ends():
    with EmbeddingPool("echo", workers=1) as given:
        with borrowed_or_own(given, PoolOptions("a model that is not looked at")) as pool:
            assert pool is given
        assert given.embed(["a"]).shape == (1, 384)
    with borrowed_or_own(None, PoolOptions("echo", workers=1)) as own:
        assert not own.started
        own.embed(["a"])
        (worker,) = own.worker_pids()
    assert not psutil.pid_exists(worker)


def test_an_event_loop_goes_on_while_a_given_pool_starts(counted):
    async def main(pool):
        asked = asyncio.ensure_future(AsyncEmbeddingPool(pool=pool).embed(["four"]))
        while not Path(counted.boots).exists():
            await asyncio.sleep(0.01)
        # Were the loop held up, nobody would open the gate.
        Path(counted.gate).touch()
        assert (await asked)[0, 1] == 4.0

    with borrowed_or_own(None, PoolOptions(counted, workers=1)) as pool:
        asyncio.run(main(pool))


def test_a_table_of_another_model_is_refused_before_any_worker_starts(tmp_path):
    with Memory(tmp_path, model=EchoLoader(8), workers=1):
        pass
    before = children()
    pool = EmbeddingPool(EchoLoader(16), workers=1)
    with pytest.raises(TableMismatch):
        Memory(tmp_path, pool=pool)
    assert children() == before and not pool.started
