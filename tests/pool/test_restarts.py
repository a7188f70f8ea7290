"""When the next worker may start, and when callers are told that none can."""

from __future__ import annotations

import pytest

from memworker import EmbeddingPool
from memworker.errors import WorkerStartFailed
from memworker.pool.handle import WorkerState
from memworker.pool.restarts import Restarts


@pytest.fixture
def restarts():
    restarts = Restarts(2, patience_s=30.0)
    restarts.all_ready()
    return restarts


def fail(restarts, number, now):
    restarts.failed(number, now, f"the {number}th at {now:.0f}")
    restarts.schedule(number, now)


def outage(restarts, now, working=0):
    return restarts.outage(now, working=working, at_work=False)


def back_off(restarts, number, now):
    fail(restarts, number, now)
    (due,) = restarts.times(now, working=1)
    restarts.take_due(due)
    return due - now


def test_the_first_two_are_replaced_at_once_and_then_later_and_later(restarts):
    waits = [back_off(restarts, 0, now=float(life)) for life in range(40)]
    assert waits[:4] == pytest.approx([0.0, 0.0, 0.05, 0.1])
    assert waits[4:] == sorted(waits[4:]) and waits[-1] == 30.0
    restarts.answered(0)
    assert back_off(restarts, 0, now=100.0) == 0.0


def test_each_place_waits_for_itself(restarts):
    for _ in range(10):
        fail(restarts, 0, now=0.0)
    fail(restarts, 1, now=0.0)
    assert restarts.take_due(0.0) == [1]


def test_callers_are_told_when_every_place_has_failed_for_so_long(restarts):
    for now in range(5):
        fail(restarts, 0, now=float(now))
    assert outage(restarts, 1000.0) is None
    fail(restarts, 1, now=100.0)
    assert outage(restarts, 129.0) is None and 130.0 in restarts.times(101.0, working=0)
    told = outage(restarts, 130.0)
    assert "6 workers in a row" in str(told) and "the 1th at 100" in str(told)
    assert told.retry_after_s >= 1
    # One that works is enough, and one that answers is a new beginning.
    assert outage(restarts, 130.0, working=1) is None
    restarts.answered(1)
    assert outage(restarts, 130.0) is None


def test_two_deaths_are_an_accident(restarts):
    fail(restarts, 0, now=0.0)
    fail(restarts, 1, now=0.0)
    assert outage(restarts, 1e6) is None


def test_at_the_first_start_one_place_is_enough_to_give_up():
    restarts = Restarts(2, patience_s=30.0)
    for now in (0.0, 5.0, 9.9):
        fail(restarts, 0, now)
    with pytest.raises(WorkerStartFailed, match="4 workers in a row.*within 10 s"):
        fail(restarts, 0, now=10.0)


def test_texts_set_aside_one_after_the_other_are_the_workers_fault(restarts):
    for _ in range(8):
        assert outage(restarts, 0.0, working=2) is None
        restarts.set_aside("worker 0 left")
    assert restarts.in_doubt
    assert restarts.outage(0.0, working=2, at_work=True) is None
    assert "8 texts one after the other" in str(outage(restarts, 0.0, working=2))
    assert outage(restarts, 0.0, working=2) is None and not restarts.in_doubt
    for _ in range(7):
        restarts.set_aside("worker 0 left")
    restarts.answered(0)
    restarts.set_aside("worker 0 left")
    assert outage(restarts, 0.0, working=2) is None


def test_what_the_pools_thread_was_at_meanwhile_is_no_workers_silence():
    """Or work that was not even sent would be overdue, where this thread was stopped in between."""
    with EmbeddingPool("echo", workers=1) as pool:
        pool.embed(["x"])
        supervisor = pool._scheduler._supervisor
        (handle,) = supervisor.workers
        # Of one that is ready and has nothing to do, nothing is due.
        handle.state = WorkerState.STARTING
        due = handle.deadline(1.0, 50.0)
        supervisor._looked_at -= 100
        supervisor._excuse()
        # And not again, but for the moment since.
        supervisor._excuse()
        assert due + 100 <= handle.deadline(1.0, 50.0) < due + 190
        handle.state = WorkerState.READY
        pool.embed(["y"])
        assert handle._excused_s == 0
