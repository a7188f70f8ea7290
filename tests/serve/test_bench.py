"""`bench/server.py` at its smallest: that its load is honest and its soak looks at the memory."""

from __future__ import annotations

import json

from bench import http_load, server
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


def test_a_short_soak_keeps_its_memory(tmp_path):
    options = ["--soak", "3", "--clients", "4", "--workers", "1", "--limit", "200"]
    server.main([*options, "--save", str(tmp_path), "--json"])
    result = json.loads((tmp_path / "server-soak.json").read_text())
    assert {"200", "400", "404"} <= set(result["statuses"])
    assert not {"500", "503"} & set(result["statuses"])
    for who in ("parent", "workers"):
        assert abs(result[who]["drift_mb"]) < 64
        assert result[who]["first_mb"] > 1


def test_drift_is_told_from_noise():
    assert server._drift([10.0, 12.0, 11.0, 11.0, 12.0, 10.0, 11.0, 11.0])["drift_mb"] == 0
    assert server._drift([10.0, 10.0, 20.0, 30.0, 40.0, 40.0, 40.0, 50.0])["drift_mb"] == 35


def test_a_bench_starts_and_ends_its_server():
    with serving("--model", "echo") as served:
        seen = server.ServerProcess(served.url, server.psutil.Process(served.process.pid))
        assert seen.cpu_s() > 0 and seen.memory_mb()["workers"] > 1
