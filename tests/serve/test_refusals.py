"""What is wrong is said in the interface's own shape, with the right status, naming the field."""

from __future__ import annotations

import pytest

from tests.serve.processes import hosting

GOOD = {"model": "echo", "input": "tea"}


def refused(answer, status, code, param=None):
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["message"] and error["type"]
    return error


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input": ""}, "empty_input", "input"),
        ({"input": []}, "empty_input", "input"),
        ({"input": ["tea", ""]}, "empty_input", "input"),
        ({"input": [[]]}, "empty_input", "input"),
        ({"input": ["tea"] * 2049}, "too_many_inputs", "input"),
        ({"input": ["tea", 5]}, "invalid_type", "input"),
        ({"input": [5, "tea"]}, "invalid_type", "input"),
        ({"input": [[5], "tea"]}, "invalid_type", "input"),
        ({"input": None}, "invalid_type", "input"),
        ({"input": {"text": "tea"}}, "invalid_type", "input"),
        ({"input": [1.5]}, "invalid_type", "input"),
        ({"input": [-1]}, "invalid_token", "input"),
        ({"input": [2**31]}, "invalid_token", "input"),
        ({"input": [2**70]}, "invalid_token", "input"),
        ({"input": "x" * 1_100_000}, "invalid_input", "input"),
        ({"input": [1] * 300_000}, "invalid_input", "input"),
        ({"input": [1] * 300_001}, "max_tokens_per_request", "input"),
        ({"input": ["tea and milk " * 50_000] * 4}, "max_tokens_per_request", "input"),
        ({"dimensions": 0}, "invalid_type", "dimensions"),
        ({"dimensions": 383}, "invalid_dimensions", "dimensions"),
        ({"dimensions": "384"}, "invalid_type", "dimensions"),
        ({"encoding_format": "hex"}, "invalid_type", "encoding_format"),
        ({"model": None}, "invalid_type", "model"),
        ({"user": 5}, "invalid_type", "user"),
        ({"input_type": "neither"}, "invalid_type", "input_type"),
    ],
)
def test_bad_fields(echo, change, code, param):
    refused(echo.http.post("/v1/embeddings", json=GOOD | change), 400, code, param)


def test_an_input_that_is_too_large_is_named_as_the_request_has_it(echo):
    large = "x" * 1_100_000
    for path, body, said in (
        ("/v1/embeddings", {"input": ["tea", large]}, "input[1] has 1,100,000 bytes"),
        ("/v1/embeddings", {"input": [[1], [1] * 290_000]}, "input[1] has 290,000 tokens"),
        ("/embed", {"inputs": [large, "tea"]}, "inputs[0] has 1,100,000 bytes"),
    ):
        named = {} if path == "/embed" else {"model": "echo"}
        answer = echo.http.post(path, json={**named, **body})
        assert answer.status_code == 400 and said in answer.text
        # How the pool's option is called helps no client.
        assert "max_text_bytes" not in answer.text


def test_a_missing_field_is_named(echo):
    for field in ("model", "input"):
        body = {name: value for name, value in GOOD.items() if name != field}
        error = echo.http.post("/v1/embeddings", json=body).json()["error"]
        assert field in error["message"]


def test_an_unknown_model_is_not_found(echo):
    error = refused(echo.embed(model="other"), 404, "model_not_found", "model")
    assert "echo" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model":"echo","input":"\xff"}',
        b'"tea"',
        b"[1]",
        b'{"a":' * 100_000,
        b"null",
    ],
)
def test_bodies_that_are_no_request(echo, body):
    answer = echo.http.post("/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in (
        "invalid_json",
        "invalid_type",
        "unknown_parameter",
    )
    assert echo.http.post("/embed", content=body).json()["error_type"] == "Validation"


def test_a_field_that_stands_twice_is_refused_and_one_in_a_text_is_not(echo):
    double = b'{"model":"echo","input":["a"],"input":["b"]}'
    answer = echo.http.post("/v1/embeddings", content=double)
    assert answer.status_code == 400 and "'input' twice" in answer.json()["error"]["message"]
    assert echo.http.post("/embed", content=b'{"inputs":"a","inputs":"b"}').status_code == 400
    body = {"model": "echo", "input": ['"input"', 'say "model": "input"']}
    assert echo.http.post("/v1/embeddings", json=body).status_code == 200
    named = b'{"model":"echo","input":"a","input_type":"query","user":"\\"input\\""}'
    assert echo.http.post("/v1/embeddings", content=named).status_code == 200


def test_a_lone_surrogate_is_the_callers_fault(echo):
    body = b'{"model":"echo","input":"\\ud800"}'
    assert echo.http.post("/v1/embeddings", content=body).status_code == 400


def test_paths_and_methods(echo):
    refused(echo.http.get("/v1/nothing"), 404, "unknown_url")
    refused(echo.http.post("/v1/embeddings/", json=GOOD), 404, "unknown_url")
    answer = echo.http.get("/v1/embeddings")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert echo.http.post("/metrics").headers["allow"] == "GET, HEAD"
    assert echo.http.options("/v1/embeddings").status_code == 405
    assert echo.http.head("/healthz").status_code == 200


def test_embed_refuses_in_its_own_shape(echo):
    for body, status, kind in (
        ({"inputs": ""}, 400, "Empty"),
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": [3]}, 400, "Validation"),
        ({"inputs": ["tea"] * 2049}, 413, "Validation"),
    ):
        answer = echo.http.post("/embed", json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
        assert set(answer.json()) == {"error", "error_type"}


def test_a_text_that_fails_is_named_and_its_neighbours_are_not_concerned():
    with hosting("saboteur") as served:
        error = refused(served.embed(["tea", "raise"]), 500, "text_failed", "input")
        assert error["message"].startswith("input[1]")
        embed = served.http.post("/embed", json={"inputs": ["raise"]})
        assert (embed.status_code, embed.json()["error_type"]) == (424, "Backend")
        assert served.embed("tea").status_code == 200
        assert served.embed(["kill", "tea"]).status_code == 500
        assert served.embed("tea").status_code == 200
