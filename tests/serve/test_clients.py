"""What clients that people have really send, and what they must get."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import zstandard
from huggingface_hub import InferenceClient

from tests import PATIENCE_S
from tests.serve.processes import KEY, hosting, serving
from tests.serve.test_metrics import samples

BODY = {"model": "echo", "input": "tea"}
RAW = json.dumps(BODY).encode()


def raw(served, *pieces, half_close=False):
    """Send bytes as they are, and give all that comes back."""
    address = served.http.base_url.host, served.http.base_url.port
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
        return answer


def head(length, *lines):
    told = "".join(f"{line}\r\n" for line in lines)
    return (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n{told}Content-Length: {length}\r\n\r\n"
    ).encode()


@pytest.fixture(scope="module")
def plain():
    with serving("--model", "echo") as served:
        yield served


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/embeddings", {**BODY, "dimension": 3}, "dimension"),
        ("/embed", {"inputs": "tea", "normalise": True}, "normalise"),
        ("/", {"inputs": "tea", "x": 1}, "x"),
        ("/tokenize", {"inputs": "tea", "x": 1}, "x"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["b"], "x": 1}},
            "inputs.x",
        ),
        ("/v1/embeddings?dimensions=3", BODY, "dimensions"),
    ],
)
def test_what_a_route_does_not_know_is_refused_by_name(plain, path, body, name):
    answer = plain.http.post(path, json=body)
    assert answer.status_code == 400 and f"`{name}`" in answer.text


def test_token_ids_of_whoever_are_refused_with_the_switch_that_helps(plain):
    # What LangChain's OpenAIEmbeddings sends where nothing is said: cl100k's ids of "tea".
    with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="any") as client:
        for given in ([[9466, 64]], [9466, 64]):
            with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
                client.embeddings.create(model="echo", input=given)


def test_an_offer_of_http_2_is_ignored_with_its_body_read(plain):
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")
    whole = head(len(RAW), *offer) + RAW
    for pieces in ((whole,), (whole[:40], whole[40:]), (head(len(RAW), *offer), RAW)):
        # Another one on the same connection, too.
        last = head(len(RAW), "Connection: close") + RAW
        assert raw(plain, *pieces, last).count(b"HTTP/1.1 200 ") == 2
    chunked = head(0, *offer).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(RAW), RAW)
    assert raw(plain, chunked, chunks, half_close=True).count(b"HTTP/1.1 200 ") == 1
    assert raw(plain, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_client_that_ends_its_sending_gets_its_answer(plain, tmp_path):
    assert b"HTTP/1.1 200 " in raw(plain, head(len(RAW)) + RAW, half_close=True)
    told = {"gate": str(tmp_path / "gate"), "begun": str(tmp_path / "begun")}
    with hosting("gated", loader=told) as served, ThreadPoolExecutor(1) as pool:
        body = RAW.replace(b"echo", b"test")
        asked = pool.submit(raw, served, head(len(body)) + body, half_close=True)
        served.until((tmp_path / "begun").exists)
        # Longer than it takes to find out whether a client is gone.
        with pytest.raises(TimeoutError):
            asked.result(1.0)
        (tmp_path / "gate").touch()
        assert b"HTTP/1.1 200 OK" in asked.result(PATIENCE_S)


def test_packed_bodies_are_unpacked_to_the_bound_and_no_further():
    many = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = many.compress(b" " * (64 << 20)) + many.flush()
    with serving("--model", "echo", "--max-body", "1MiB") as served:

        def post(content, encoding):
            headers = {"content-encoding": encoding}
            return served.http.post("/v1/embeddings", content=content, headers=headers)

        for encoding, packed in (
            ("gzip", gzip.compress(RAW)),
            ("zstd", zstandard.compress(RAW)),
            ("deflate", zlib.compress(RAW)),
            ("identity", RAW),
        ):
            assert post(packed, encoding).status_code == 200, encoding
        assert post(bomb, "gzip").status_code == 413
        assert post(zstandard.compress(b" " * (64 << 20)), "zstd").status_code == 413
        for encoding in ("gzip", "zstd", "deflate"):
            for damaged in (b"nothing", gzip.compress(RAW)[:-9], zstandard.compress(RAW)[:-3]):
                answer = post(damaged, encoding)
                assert answer.status_code == 400
                assert answer.json()["error"]["code"] in ("invalid_encoding", "invalid_json")
        refused = post(RAW, "br")
        assert refused.status_code == 415 and "gzip" in refused.headers["accept-encoding"]


def test_replies_are_as_short_as_float32_can_be_and_packed_where_that_is_asked(minilm):
    asked = {"inputs": ["I like tea.", "The bus is late."]}
    plain = minilm.http.post("/embed", json=asked, headers={"accept-encoding": "gzip;q=0"})
    packed = minilm.http.post("/embed", json=asked, headers={"accept-encoding": "br, gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip" and packed.content == plain.content
    assert int(packed.headers["content-length"]) < 0.6 * len(plain.content)
    vectors = np.array(plain.json(), np.float32)
    # A double of the same number takes some twenty characters.
    assert len(plain.content) < 13.5 * vectors.size
    told = {"model": "all-MiniLM-L6-v2", "input": asked["inputs"], "encoding_format": "base64"}
    dense = minilm.http.post("/v1/embeddings", json=told, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in dense.headers


def test_what_text_embeddings_inference_answers_besides(minilm):
    close = minilm.http.post(
        "/similarity",
        json={"inputs": {"source_sentence": "tea", "sentences": ["tea", "a bus"]}},
    ).json()
    assert close[0] == pytest.approx(1, abs=1e-5) and close[1] < 0.9
    url = str(minilm.http.base_url)
    compared = InferenceClient(url).sentence_similarity("tea", other_sentences=["tea", "a bus"])
    assert compared == close
    (vector,) = InferenceClient(url, token="x").feature_extraction("tea", normalize=True)
    assert np.allclose(vector, minilm.http.post("/embed", json={"inputs": "tea"}).json()[0])
    (tokens,) = minilm.http.post("/tokenize", json={"inputs": "I like tea"}).json()
    assert [token["id"] for token in tokens] == [101, 1045, 2066, 5572, 102]
    assert tokens[0]["special"] and tokens[3] == {
        "id": 5572,
        "text": "tea",
        "special": False,
        "start": 7,
        "stop": 10,
    }
    info = minilm.http.get("/info").json()
    assert info["model_id"] == "all-MiniLM-L6-v2" and info["max_input_length"] == 256
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert minilm.http.get("/health").status_code == 200
    # As Haystack asks for, at the root and not normalised once more.
    asked = {"inputs": ["tea"], "truncate": True, "normalize": False}
    assert len(minilm.http.post("/", json=asked).json()[0]) == 384
    for wrong in ({"truncation_direction": "Left"}, {"dimensions": 5}):
        answer = minilm.http.post("/embed", json={"inputs": "tea", **wrong})
        assert answer.status_code == 400 and "error_type" in answer.json()


def test_a_query_has_many_names_and_a_text_may_be_cut_by_request(minilm):
    def ask(**fields):
        return minilm.embed("tea " * 400, model="all-MiniLM-L6-v2", **fields)

    for cut in (-1, 256, 8192):
        assert ask(truncate_prompt_tokens=cut).status_code == 200
    assert ask().status_code == 400
    few = ask(truncate_prompt_tokens=2)
    assert few.status_code == 400 and "3 and more" in few.text
    for name in ("query", "search_query", "passage", "document", "search_document"):
        assert minilm.embed("tea", model="all-MiniLM-L6-v2", input_type=name).status_code == 200
    assert minilm.embed("tea", model="all-MiniLM-L6-v2", input_type="other").status_code == 400


def test_a_text_is_cut_to_as_few_tokens_as_a_request_says(minilm):
    def ask(given, **fields):
        answer = minilm.embed(given, model="all-MiniLM-L6-v2", **fields).json()
        return [row["embedding"] for row in answer["data"]], answer["usage"]["prompt_tokens"]

    def cut_so_far():
        return samples(minilm)["memworker_texts_truncated_total",]

    before = cut_so_far()
    (left, short), tokens = ask(["tea with milk " * 400, "a bus"], truncate_prompt_tokens=5)
    assert tokens == 5 + 4 and cut_so_far() == before + 1
    (same, bus), _ = ask(["tea with milk", "a bus"])
    assert np.allclose(left, same, atol=1e-4) and np.allclose(short, bus, atol=1e-4)
    # "tea with milk" and "tea", with the special tokens that ids get.
    assert ask([[5572, 2007, 6501]], truncate_prompt_tokens=3) == ask("tea")


def test_a_cut_that_a_model_without_tokens_cannot_make_is_refused(plain):
    refused = plain.embed("tea", "echo", truncate_prompt_tokens=5)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "no_tokenizer"
    assert plain.embed("tea", "echo", truncate_prompt_tokens=-1).status_code == 200


def test_more_than_may_be_taken_at_once_waits_in_line(tmp_path):
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    told = {"gate": str(gate), "begun": str(begun)}
    pool = {"max_pending_tokens": 50}
    with hosting("gated", loader=told, pool=pool) as served, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(served.embed, "x" * 200) for _ in range(8)]
        served.until(lambda: served.http.get("/live").json()["in_flight"] == 8)
        gate.touch()
        assert {answer.result().status_code for answer in asked} == {200}


def test_a_wait_that_is_over_says_so_and_leaves_the_line(tmp_path):
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    told = {"gate": str(gate), "begun": str(begun)}
    limits = {"pool": {"max_pending_tokens": 50}, "options": {"max_wait_s": 0.2}}
    with hosting("gated", loader=told, **limits) as served, ThreadPoolExecutor(1) as threads:
        first = threads.submit(served.embed, "x" * 200)
        served.until(begun.exists)
        refused = served.embed("y" * 200)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "--max-wait" in refused.text and "--max-pending-tokens" in refused.text
        gate.touch()
        assert first.result().status_code == 200
        assert served.embed("y" * 200).status_code == 200


def test_a_key_makes_the_name_of_no_matter_unless_a_page_asks():
    with serving("--model", "echo", "--host", "0.0.0.0", key=KEY) as served:
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        right = {"authorization": f"Bearer {KEY}"}

        def ask(**headers):
            return httpx.get(f"{url}/v1/models", headers={**right, **headers}, timeout=PATIENCE_S)

        assert ask(host="my.machine").status_code == ask(host="192.168.1.5:80").status_code == 200
        refused = ask(host="my.machine", origin="http://evil.example")
        assert refused.status_code == 403
        assert "http://evil.example" in refused.text and "--cors-origin" in refused.text
        assert ask(host="my.machine", origin="http://my.machine").status_code == 200
        assert ask(host="my.machine", authorization="Bearer no").status_code == 401


def test_pages_of_an_origin_may_be_let_in():
    page = "https://app.example"
    with serving("--model", "echo", "--cors-origin", page) as served:
        asks = {"origin": page, "access-control-request-method": "POST"}
        preflight = served.http.options("/v1/embeddings", headers=asks)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        answer = served.http.post("/v1/embeddings", json=BODY, headers={"origin": page})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        other = {"origin": "https://other.example", "access-control-request-method": "POST"}
        refused = served.http.options("/v1/embeddings", headers=other)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


def test_every_option_can_be_given_by_a_variable(monkeypatch, tmp_path):
    log = tmp_path / "access.log"
    monkeypatch.setenv("MEMWORKER_MODEL", "echo")
    monkeypatch.setenv("MEMWORKER_SERVED_MODEL_NAME", "one two")
    monkeypatch.setenv("MEMWORKER_ACCESS_LOG", str(log))
    with serving() as served:
        assert served.embed(model="two").status_code == 200
        log.rename(tmp_path / "old")
        served.process.send_signal(signal.SIGHUP)
        served.until(log.exists)
        assert served.embed("tea", model="three").status_code == 404
        served.until(lambda: "404" in log.read_text())
    (line,) = (tmp_path / "old").read_text().splitlines()
    assert "POST /v1/embeddings 200" in line and "two" not in line
    assert "model_not_found" in log.read_text() and "three" not in log.read_text()


def test_a_key_is_read_again(tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    with serving("--model", "echo", "--api-key-file", str(file)) as served:

        def status(key):
            headers = {"authorization": f"Bearer {key}"}
            return served.http.get("/v1/models", headers=headers).status_code

        assert status(KEY) == 200
        file.write_text(KEY + "-and-more")
        served.process.send_signal(signal.SIGHUP)
        served.until(lambda: status(KEY + "-and-more") == 200)
        assert status(KEY) == 401
        file.write_text("short")
        served.process.send_signal(signal.SIGHUP)
        assert status(KEY + "-and-more") == 200


def test_a_socket_that_is_a_file_is_served_and_removed(tmp_path):
    path = tmp_path / "memworker.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with serving("--model", "echo", "--uds", str(path)) as served:
        assert path.stat().st_mode & 0o007 == 0
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, timeout=PATIENCE_S) as client:
            answer = client.post("http://any.name/v1/embeddings", json=BODY)
            assert answer.status_code == 200
        assert served.stop() == 0
    assert not path.exists()


def test_what_is_wrong_on_a_connection_is_said_in_a_body(plain):
    answer = raw(plain, b"no request\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"


def test_who_is_still_sending_gets_the_refusal_all_the_same():
    with serving("--model", "echo", "--max-body", "100KiB") as served:
        address = served.http.base_url.host, served.http.base_url.port
        for status, path in ((413, "/v1/embeddings"), (404, "/nowhere")):
            # As a proxy sends it: on a connection that is closed behind it.
            line = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n"
            with socket.create_connection(address, timeout=PATIENCE_S) as connection:
                connection.sendall(line.encode())
                # The refusal is there before the body is, and sending goes on undisturbed.
                answer = connection.recv(65_536)
                for _ in range(200):
                    connection.sendall(b"x" * 100_000)
                while more := connection.recv(65_536):
                    answer += more
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
