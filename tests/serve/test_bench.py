"""`bench/server.py` at its smallest: that its load is honest."""

from __future__ import annotations

import pytest

from bench import http_load, server
from memworker.errors import MemworkerError
from tests.serve.processes import serving


def test_the_load_counts_every_answer(echo):
    asked = [http_load.request(echo.url, "echo", [f"text {row}"]) for row in range(50)]
    outcome = http_load.each_once(echo.url, asked, clients=7)
    assert outcome.statuses == {200: 50} and len(outcome.latencies) == 50
    wrong = [http_load.request(echo.url, "another", ["tea"])]
    assert http_load.each_once(echo.url, wrong, clients=2).statuses == {404: 1}


def test_the_load_ends_with_its_time(echo):
    asked = [http_load.request(echo.url, "echo", ["tea", "milk"])]
    outcome = http_load.for_seconds(echo.url, asked, clients=3, seconds=0.3)
    assert outcome.requests_per_s > 0 and set(outcome.statuses) == {200}
    assert set(outcome.percentiles_ms()) == {"p50_ms", "p95_ms", "p99_ms"}


def test_each_connection_asks_once_however_little_time_there_is(echo):
    asked = [http_load.request(echo.url, "echo", ["tea"])]
    outcome = http_load.for_seconds(echo.url, asked, clients=3, seconds=1e-9)
    assert outcome.statuses == {200: 3}


def test_nothing_answered_is_said_and_not_divided_by():
    assert http_load.Outcome(seconds=0.5).requests_per_s == 0
    with pytest.raises(MemworkerError, match="no request was answered within 0.5 s"):
        server._all_answered(http_load.Outcome(seconds=0.5))


def test_a_bench_starts_and_ends_its_server():
    with serving("--model", "echo") as served:
        seen = server.ServerProcess(served.url, server.psutil.Process(served.process.pid))
        assert seen.cpu_s() > 0 and seen.workers_cpu_s() > 0
