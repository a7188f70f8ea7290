"""Workers that die, crash, raise or cannot start: the pool answers, and never hangs."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest

from memworker import EmbeddingPool
from memworker.errors import TextFailed, WorkerStartFailed
from memworker.pool.echo import EchoEncoder


@dataclass(frozen=True)
class Saboteur:
    """An echo encoder that does what its texts tell it to."""

    dim: int = 8
    boot: str = ""

    def __call__(self):
        if self.boot == "raise":
            raise RuntimeError("no such session")
        if self.boot == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return SaboteurEncoder(self.dim)


class SaboteurEncoder:
    def __init__(self, dim):
        self.dim = dim
        self.echo = EchoEncoder(dim)

    def encode(self, texts, rows):
        for row, text in enumerate(texts.decode_all()):
            if text == "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif text == "raise":
                raise ValueError("cannot encode this")
            elif text == "fail row":
                rows.status[row] = 2
            elif text.startswith("die once "):
                flag = text.removeprefix("die once ")
                if not os.path.exists(flag):
                    open(flag, "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
        yield from self.echo.encode(texts, rows)


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool(Saboteur(), workers=2) as pool:
        yield pool


TEXTS = [f"text {number}" for number in range(500)]


def test_a_worker_killed_in_mid_shard_costs_nothing(pool, tmp_path):
    texts = [*TEXTS, f"die once {tmp_path}/flag", *TEXTS]
    vectors = pool.embed(texts)
    assert vectors[:, 1].tolist() == [len(text) for text in texts]
    assert pool.work.restarts >= 1


def test_a_text_that_kills_workers_is_reported_and_only_it(pool):
    texts = [*TEXTS, "segv", *TEXTS]
    outcome = pool.submit_rows(texts).result(60)
    assert list(outcome.failures) == [500]
    assert "SIGSEGV" in outcome.failures[500] and "pid" in outcome.failures[500]
    good = np.delete(outcome.vectors[:, 1], 500).tolist()
    assert good == [len(text) for text in TEXTS + TEXTS]
    with pytest.raises(TextFailed, match=r"texts\[500\].*3 workers") as caught:
        pool.embed(texts)
    assert caught.value.index == 500


def test_an_exception_reaches_the_caller_and_the_pool_goes_on(pool):
    with pytest.raises(TextFailed, match="ValueError: cannot encode this"):
        pool.embed(["raise"])
    assert pool.embed(["next"])[0, 1] == 4


def test_an_exception_on_one_text_fails_only_that_row(pool):
    outcome = pool.submit_rows([*TEXTS, "raise", *TEXTS]).result(60)
    assert list(outcome.failures) == [500]
    assert np.isnan(outcome.vectors[500]).all()
    assert not np.isnan(np.delete(outcome.vectors, 500, 0)).any()


def test_all_workers_killed_together(pool):
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert pool.embed(TEXTS)[:, 1].tolist() == [len(text) for text in TEXTS]


def test_boot_error_is_fatal_at_once_and_says_why():
    with pytest.raises(WorkerStartFailed, match="RuntimeError: no such session"):
        EmbeddingPool(Saboteur(boot="raise"), workers=2)


def test_workers_that_die_while_starting_end_in_an_error():
    with pytest.raises(WorkerStartFailed, match="SIGKILL.*memory"):
        EmbeddingPool(Saboteur(boot="die"), workers=2)


def test_workers_leave_with_their_killed_parent(tmp_path):
    import subprocess
    import sys

    import psutil

    code = (
        "from memworker import EmbeddingPool\n"
        "pool = EmbeddingPool('echo', workers=2)\n"
        "print(*pool.worker_pids(), flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        workers = [psutil.Process(pid) for pid in pids]
        parent.kill()
    deadline = time.monotonic() + 2
    _, alive = psutil.wait_procs(workers, timeout=deadline - time.monotonic())
    assert not alive
