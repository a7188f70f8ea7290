"""Who may ask, under which name, and how much they may send."""

from __future__ import annotations

import base64
import math
import resource
import socket
import subprocess
from contextlib import ExitStack

import psutil
import pytest

from memworker.errors import UsageError
from memworker.serve.connection import MAX_HEAD_BYTES
from memworker.serve.gate import ROUTES, route_of
from memworker.serve.options import ServeOptions, is_loopback, read_key
from memworker.serve.routes import answers
from memworker.serve.server import listen
from memworker.serve.service import Service
from tests import PATIENCE_S
from tests.serve.processes import COMMAND, KEY, serving

BODY = {"model": "echo", "input": "tea"}


@pytest.fixture(scope="module")
def guarded():
    with serving("--model", "echo", "--max-body", "64KiB", "--host", "0.0.0.0", key=KEY) as served:
        served.url = served.url.replace("0.0.0.0", "127.0.0.1")
        served.http.base_url = served.url
        yield served


def asked(served, path="/v1/models", **headers):
    return served.http.get(path, headers=headers).status_code


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "",
        "evil@localhost",
        "localhost@evil.example",
        "[::1].evil.example",
    ],
)
def test_another_name_is_refused(echo, host):
    assert asked(echo, host=host) == 400
    answer = echo.http.post("/v1/embeddings", json=BODY, headers={"host": host})
    assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:9", "[::1]"])
def test_loopbacks_names_are_known(echo, host):
    assert asked(echo, host=host) == 200


def test_no_host_and_two_hosts_are_refused(echo):
    for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        assert b" 400 " in raw(echo, b"GET /v1/models HTTP/1.1\r\n" + hosts + b"\r\n")


def test_probes_may_come_by_any_name(echo):
    assert asked(echo, "/healthz", host="10.1.2.3") == asked(echo, "/readyz", host="pod") == 200


def test_pages_of_other_origins_are_refused(echo):
    assert asked(echo, origin="http://evil.example") == asked(echo, origin="null") == 403
    assert asked(echo, origin=echo.url) == 200
    # Another port of the machine is somebody else's page.
    assert asked(echo, origin="http://127.0.0.1:1") == asked(echo, origin="http://localhost") == 403
    assert "access-control-allow-origin" not in echo.http.get("/v1/models").headers


def test_a_name_can_be_allowed():
    options = ("--allowed-host", "vectors.example", "--served-model-name", "a", "--model", "echo")
    with serving(*options, "--served-model-name", "b") as served:
        assert asked(served, host="vectors.example:80") == 200
        assert asked(served, origin="https://vectors.example") == 200
        assert asked(served, host="other.example") == 400
        names = [model["id"] for model in served.http.get("/v1/models").json()["data"]]
        assert names == ["a", "b"]
        assert served.embed(model="b").json()["model"] == "b"
        assert served.embed(model="echo").status_code == 404


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/", "/live", "/no"])
def test_off_loopback_every_route_wants_the_key(guarded, path):
    for wrong in ("", "Bearer", f"Bearer {KEY}x", "Bearer ü", f"Token {KEY}", KEY):
        answer = guarded.http.get(path, headers={"authorization": wrong.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"]
    right = guarded.http.get(path, headers={"authorization": f"bearer {KEY}"})
    assert right.status_code == (404 if path == "/no" else 200)


def test_the_probes_want_no_key(guarded):
    assert asked(guarded, "/healthz") == asked(guarded, "/readyz") == 200


def test_a_browser_may_give_the_key_as_a_password_and_only_look(guarded):
    password = "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()
    assert asked(guarded, "/", authorization=password) == 200
    assert asked(guarded, "/live", authorization=password) == 200
    assert asked(guarded, "/v1/models", authorization=password) == 401
    assert asked(guarded, "/", authorization="Basic !") == 401
    posted = guarded.http.post("/v1/embeddings", json=BODY, headers={"authorization": password})
    assert posted.status_code == 401


def test_the_key_is_not_in_the_process_list(guarded):
    command = psutil.Process(guarded.process.pid).cmdline()
    assert "serve" in command and KEY not in " ".join(command)


def test_a_body_that_is_too_large_is_refused_however_it_comes(guarded):
    headers = {"authorization": f"Bearer {KEY}"}
    large = b'{"model":"echo","input":"' + b"x" * 100_000 + b'"}'

    def in_pieces():
        yield from (large[start : start + 1000] for start in range(0, len(large), 1000))

    for content in (large, in_pieces()):
        answer = guarded.http.post("/v1/embeddings", content=content, headers=headers)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"
    small = guarded.http.post("/v1/embeddings", json=BODY, headers=headers)
    assert small.status_code == 200


def test_a_length_that_lies_is_not_believed(guarded):
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    ).encode()
    # It promises more than there may be: refused before any of it is read.
    assert b" 413 " in raw(guarded, head + b"Content-Length: 99999999999\r\n\r\n")
    # Two lengths, or one that is no number: no request at all.
    assert b" 400 " in raw(guarded, head + b"Content-Length: -5\r\n\r\n")
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b" 400 " in raw(guarded, head + both)
    body = b'{"model":"echo","input":"tea"}'
    cut = raw(guarded, head + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"GET / HTTP")
    assert cut.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("endless", [b"x: " + b"y" * 1000 + b"\r\n", b"y" * 1000])
def test_endless_trailers_are_ended(guarded, endless):
    before = psutil.Process(guarded.process.pid).memory_info().rss
    with socket.create_connection(guarded.http.base_url.netloc.decode().split(":")) as connection:
        # Without the key: who gets no answer but 401 must not fill the memory either.
        head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"2\r\n{}\r\n0\r\nx: ")
        with pytest.raises(OSError):
            for _ in range(100_000):
                connection.sendall(endless)
    assert psutil.Process(guarded.process.pid).memory_info().rss - before < 20 << 20


def test_a_body_may_come_in_small_chunks(echo):
    body = b'{"model":"echo","input":"%b"}' % (b"x" * 40_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert len(chunks) > 3 * MAX_HEAD_BYTES
    assert raw(echo, head + chunks).startswith(b"HTTP/1.1 200 ")


def test_an_endless_head_is_ended(guarded):
    with socket.create_connection(guarded.http.base_url.netloc.decode().split(":")) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(100_000):
                connection.sendall(b"x: " + b"y" * 1000 + b"\r\n")


def raw(served, request):
    """Send bytes as they are, and give the beginning of what comes back."""
    address = served.http.base_url.host, served.http.base_url.port
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        return connection.recv(65_536)


def test_off_loopback_without_a_key_is_refused():
    done = subprocess.run(
        [COMMAND, "serve", "--model", "echo", "--host", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={"PATH": ""},
    )
    assert done.returncode == 2 and "MEMWORKER_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_that_cannot_be(tmp_path):
    for wrong in (
        {"port": 70_000},
        {"drain_s": 0},
        {"drain_s": math.nan},
        {"allowed_hosts": ("https://vectors.example/",)},
        {"allowed_hosts": ("vectors.example:8000",)},
        {"key": "short"},
        {"key": "with a space in the middle"},
        {"host": "192.0.2.1"},
        {"host": "some.name"},
        {"host": ""},
    ):
        with pytest.raises(UsageError):
            ServeOptions(**wrong)
    assert KEY not in repr(ServeOptions(key=KEY))
    assert ServeOptions(allowed_hosts=("vectors.example", "[2001:db8::1]", "*", "192.0.2.1"))
    with pytest.raises(UsageError, match="no-such-file"):
        read_key(tmp_path / "no-such-file")
    for nothing in ("", " \n"):
        (tmp_path / "key").write_text(nothing)
        with pytest.raises(UsageError, match="empty"):
            read_key(tmp_path / "key")
    (tmp_path / "key").write_text(KEY + "\n")
    assert read_key(tmp_path / "key") == KEY
    assert is_loopback("127.3.4.5") and is_loopback("::1") and not is_loopback("0.0.0.0")


def test_a_host_that_is_none_is_said():
    with pytest.raises(UsageError, match=r"no name and no address"):
        listen(ServeOptions(host="nowhere.invalid", key=KEY, port=0))


def test_a_file_without_a_key_does_not_open_the_server(tmp_path):
    (tmp_path / "key").touch()
    for wrong in (("--api-key-file", str(tmp_path / "key")), ("--max-body", "much")):
        done = subprocess.run(
            [COMMAND, "serve", "--model", "echo", "--port", "0", *wrong],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert wrong[-1] in done.stderr


def test_connections_leave_the_pool_its_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
        try:
            served = stack.enter_context(serving("--model", "echo"))
        finally:
            # The server has inherited it; this process may hold more files already.
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        address = served.http.base_url.host, served.http.base_url.port
        with ExitStack() as held:
            for _ in range(100):
                held.enter_context(socket.create_connection(address))
            assert served.http.get("/healthz").status_code == 503
        served.until(lambda: served.http.get("/healthz").status_code == 200)


def test_what_anybody_may_send_is_not_logged():
    with serving("--model", "echo") as served:
        said = served.stderr
        upgrade = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        assert b" 400 " in raw(served, b"no request\r\n\r\n")
        assert b" 200 " in raw(served, b"GET / HTTP/1.1\r\n" + upgrade)
        served.stop()
        assert served.stderr == said


def test_labels_do_not_grow_with_what_is_asked():
    assert route_of("/v1/models/any") == "/v1/models/{name}"
    assert route_of("/any/thing") == route_of("/%00") == "other"


def test_every_route_has_its_own_label_in_the_metrics():
    paths = answers(Service(ServeOptions()))
    assert set(paths) - {"/v1/models/"} == ROUTES


def test_a_taken_port_is_said(echo):
    port = str(echo.http.base_url.port)
    done = subprocess.run(
        [COMMAND, "serve", "--model", "echo", "--port", port],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2 and f"port {port}" in done.stderr
