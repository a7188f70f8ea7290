"""Fault 56: workers that die while they start, for a while or for good."""

from __future__ import annotations

import json
import os
import signal

import pytest

from memworker import EmbeddingPool, ingest
from memworker.errors import PoolUnavailable, WorkerStartFailed
from tests.faults import harness
from tests.faults.loaders import Mortal, OnlyOne
from tests.faults.test_workers import python

PATIENCE_S = 120.0


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def kill_all(pool):
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGKILL)


def lengths(vectors):
    return vectors[:, 1].tolist()


def test_56_what_passes_in_time_costs_time_alone(marker):
    with EmbeddingPool(Mortal(str(marker)), workers=2, stall_timeout_s=PATIENCE_S) as pool:
        marker.touch()
        kill_all(pool)
        waiting = [pool.submit(["one"]), pool.submit(["a question"], kind="query")]
        # More than the accidents after which a start that never succeeded would be given up.
        harness.wait_for(lambda: pool.work.restarts >= 8, PATIENCE_S)
        assert pool.ready_workers == 0
        marker.unlink()
        assert [lengths(future.result(PATIENCE_S)) for future in waiting] == [[3], [10]]


def test_56_what_lasts_is_told_and_passes_too(marker):
    with EmbeddingPool(Mortal(str(marker)), workers=1, stall_timeout_s=1.5) as pool:
        marker.touch()
        kill_all(pool)
        with pytest.raises(PoolUnavailable, match=r"workers in a row.*SIGKILL.*come again") as told:
            pool.embed(["one"])
        assert told.value.retry_after_s >= 1
        # It is known by now: nobody waits again.
        with pytest.raises(PoolUnavailable):
            pool.submit(["two"]).result(PATIENCE_S)
        with pytest.raises(PoolUnavailable):
            pool.submit(["three"], kind="query").result(PATIENCE_S)
        assert pool.pending_tokens == 0
        marker.unlink()
        harness.wait_for(lambda: pool.ready_workers, PATIENCE_S)
        assert lengths(pool.embed(["four"])) == [4]


def test_56_a_job_ends_with_the_reason_and_the_same_command_finishes_it(marker, tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": str(row), "text": "x" * (row % 90 + 1)} for row in range(3000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"db": tmp_path / "db", "table": "t"}
    with EmbeddingPool(Mortal(str(marker)), workers=1, stall_timeout_s=1.5) as pool:
        marker.touch()
        kill_all(pool)
        with pytest.raises(PoolUnavailable, match="SIGKILL"):
            ingest([path], pool=pool, **where)
        marker.unlink()
        harness.wait_for(lambda: pool.ready_workers, PATIENCE_S)
        ingest([path], pool=pool, **where)
    assert harness.stored(where["db"]) == {row["id"]: row["text"] for row in rows}


def test_56_one_place_that_cannot_be_filled_does_not_concern_the_other(tmp_path):
    gate = tmp_path / "gate"
    with EmbeddingPool(OnlyOne(str(gate)), workers=2, stall_timeout_s=1.5) as pool:
        gate.touch()
        kill_all(pool)
        while pool.work.restarts < 7:
            assert lengths(pool.embed(["one", "three"])) == [3, 5]
        assert pool.ready_workers == 1
        gate.unlink()
        harness.wait_for(lambda: pool.ready_workers == 2, PATIENCE_S)


def test_56_a_pool_none_of_whose_places_can_be_filled_does_not_start(tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    with pytest.raises(WorkerStartFailed, match="exit code 3.*fewer workers"):
        EmbeddingPool(OnlyOne(str(gate)), workers=2, stall_timeout_s=1.5).start()


def test_56_a_process_that_cannot_be_made_is_one_that_died():
    code = (
        "import os, resource, signal, time\n"
        "from memworker import EmbeddingPool, errors\n"
        "with EmbeddingPool('echo', workers=1, stall_timeout_s=1.5) as pool:\n"
        "    before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))\n"
        "    os.kill(pool.worker_pids()[0], signal.SIGKILL)\n"
        "    try: pool.embed(['a'])\n"
        "    except errors.PoolUnavailable as error: print(error)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, before)\n"
        "    while not pool.ready_workers: time.sleep(0.01)\n"
        "    print(int(pool.embed(['four'])[0, 1]))\n"
    )
    done = python(code)
    assert "worker 0 could not be started: Too many open files" in done.stdout, done.stderr
    assert done.stdout.endswith("\n4\n")
