"""What is counted, and that no text of anybody is told along with it."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.processes import serving

SECRET = "the user hides the spare key under the third stone"


def samples(served):
    found = {}
    for family in text_string_to_metric_families(served.http.get("/metrics").text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def test_all_names_are_ours(echo):
    assert all(name[0].startswith("memworker_") for name in samples(echo))


def test_requests_tokens_and_sizes_are_counted(echo):
    before = samples(echo)
    reply = echo.embed(["tea", "milk"], model="echo").json()
    echo.embed(model="other")
    echo.http.get("/no/such/path")
    after = samples(echo)

    def more(name, **labels):
        key = (name, *sorted(labels.items()))
        return after[key] - before.get(key, 0)

    route = {"route": "/v1/embeddings"}
    assert more("memworker_requests_total", status="200", **route) == 1
    assert more("memworker_requests_total", status="404", **route) == 1
    assert more("memworker_requests_total", status="404", route="other") == 1
    assert more("memworker_request_seconds_count", **route) == 2
    assert more("memworker_request_inputs_sum") == 2
    assert more("memworker_request_inputs_bucket", le="2.0") == 1
    assert more("memworker_request_tokens_total") == reply["usage"]["total_tokens"] == 7
    assert more("memworker_texts_total") == 2
    assert more("memworker_tokens_total") == 7
    assert more("memworker_batches_total") >= 1
    assert after[("memworker_queue_tokens",)] == 0
    assert after[("memworker_workers",)] == 1
    assert after[("memworker_worker_restarts_total",)] == 0
    assert after[("memworker_process_resident_memory_bytes",)] > 1 << 20


def test_the_live_numbers(echo):
    echo.embed(["tea"] * 5, model="echo")
    echo.embed(model="other")
    echo.until(lambda: len(echo.http.get("/live").json()["tokens"]) > 1)
    live = echo.http.get("/live").json()
    assert live["state"] == "ready" and live["names"] == ["echo"]
    assert live["total_texts"] >= 5 and live["total_requests"] >= 2
    assert 0 < live["latency"]["p50"] <= live["latency"]["p95"] <= live["latency"]["p99"]
    assert live["errors"][0].items() >= {"status": 404, "code": "model_not_found"}.items()
    assert live["limit_ratio"] is None
    (worker,) = live["workers"]
    assert worker["alive"] and worker["memory_bytes"] > 1 << 20


def test_the_share_of_the_limit_is_told_for_a_model(minilm):
    assert minilm.http.get("/live").json()["limit_ratio"] is not None


@pytest.mark.parametrize("text", [SECRET, "\ud800" + SECRET])
def test_no_text_is_told(text):
    with serving("--model", "echo") as served:
        for body in (
            {"model": "echo", "input": text},
            {"model": text, "input": "x"},
            {"model": "echo", "input": [text, 5]},
            {"model": "echo", "input": {text: text}},
            {"model": "echo", "input": text, "encoding_format": text},
            {"model": "echo", "input": text * 30_000},
        ):
            content = json.dumps(body)
            served.http.post("/v1/embeddings", content=content, params={"input": SECRET})
            served.http.post(f"/{SECRET}", content=content)
        told = served.http.get("/metrics").text + served.http.get("/live").text
        assert "404" in told and SECRET not in told and "stone" not in told
    assert "stone" not in served.stderr
