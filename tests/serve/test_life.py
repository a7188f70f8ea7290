"""Starting, being busy, losing clients, draining and ending."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests import PATIENCE_S
from tests.serve.processes import hosting, serving

# Long enough for a whole request to arrive in, on however busy a machine.
REQUEST_S = 1.0


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


@pytest.fixture
def begun(tmp_path):
    return tmp_path / "begun"


def gated(gate, begun, **told):
    return hosting("gated", loader={"gate": str(gate), "begun": str(begun)}, **told)


def in_flight(served):
    return served.http.get("/live").json()["in_flight"]


def test_before_the_model_is_there_it_says_so(gate):
    with hosting("slow_start", loader={"gate": str(gate)}, early=True) as served:
        assert served.http.get("/healthz").status_code == 200
        for answer in (served.http.get("/readyz"), served.embed(), served.http.get("/live")):
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "starting"
        assert "retry-after" in served.embed().headers
        assert served.http.get("/metrics").status_code == 200
        gate.touch()
        served.until(lambda: served.http.get("/readyz").status_code == 200)
        assert served.embed().status_code == 200
        assert served.stop() == 0


def test_a_signal_while_starting_ends_it(gate):
    with hosting("slow_start", loader={"gate": str(gate)}, early=True) as served:
        assert served.http.get("/healthz").status_code == 200
        assert served.stop() == 0


def test_a_model_that_cannot_be_had_ends_it():
    with hosting("saboteur", loader={"boot": "raise"}, early=True) as served:
        assert served.wait() == 1
        assert "no such session" in served.stderr


def test_what_is_in_flight_is_answered_and_nothing_more_is_taken(gate, begun):
    with gated(gate, begun) as served, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.embed)
        served.until(begun.exists)
        served.process.send_signal(signal.SIGTERM)
        served.until(lambda: served.http.get("/readyz").status_code == 503)
        refused = served.embed()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert "retry-after" in refused.headers
        # Whoever asks again shall not meet a connection that is being closed.
        assert refused.headers["connection"] == "close"
        assert served.process.poll() is None
        gate.touch()
        assert answer.result().status_code == 200
        assert served.wait() == 0


def test_draining_is_bounded(gate, begun):
    with gated(gate, begun, options={"drain_s": 0.2}) as served, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.embed)
        served.until(begun.exists)
        assert served.stop(signal.SIGINT) == 130
        assert answer.result().status_code == 503


def test_a_second_signal_ends_it_at_once(gate, begun):
    with gated(gate, begun) as served, ThreadPoolExecutor(1) as pool:
        workers = psutil.Process(served.process.pid).children()
        answer = pool.submit(served.embed)
        served.until(begun.exists)
        served.process.send_signal(signal.SIGTERM)
        served.until(lambda: served.http.get("/readyz").status_code == 503)
        # A signal that comes twice within a moment is one: so until the second counts.
        served.until(lambda: _ended(served))
        assert served.wait() == 143
        assert isinstance(answer.exception(), Exception)
        gone, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        assert workers and not alive


def _ended(served):
    served.process.send_signal(signal.SIGTERM)
    return served.process.poll() is not None


def test_too_much_is_refused_with_a_time_to_come_again(gate, begun):
    with (
        gated(gate, begun, pool={"max_pending_tokens": 50}, options={"max_wait_s": 0}) as served,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(served.embed, "x" * 200)
        served.until(begun.exists)
        answer = served.embed("y" * 200)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) >= 1
        embed = served.http.post("/embed", json={"inputs": "y" * 200})
        assert (embed.status_code, embed.json()["error_type"]) == (429, "Overloaded")
        gate.touch()
        assert first.result().status_code == 200
        assert served.embed("y" * 200).status_code == 200


def test_a_client_that_leaves_takes_its_work_with_it(gate, begun):
    with gated(gate, begun) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.embed)
        served.until(begun.exists)
        with leaving(served, texts=500):
            served.until(lambda: in_flight(served) == 2)
        served.until(lambda: in_flight(served) == 1)
        served.until(lambda: served.http.get("/live").json()["queue_tokens"] < 100)
        gate.touch()
        assert first.result().status_code == 200
        # What the worker had in its hands already is done; the rest of the 500 is not.
        assert served.http.get("/live").json()["total_texts"] < 1 + 500
        assert 'status="499"' in served.http.get("/metrics").text


def test_a_client_that_leaves_in_the_middle_of_its_body(echo):
    address = echo.http.base_url.host, echo.http.base_url.port
    with socket.create_connection(address) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{"
        )
    assert echo.embed(model="echo").status_code == 200


def leaving(served, texts):
    """Send a request; the connection closes at the end of the `with`."""
    body = b'{"model":"test","input":[%b]}' % b",".join([b'"x"'] * texts)
    address = served.http.base_url.host, served.http.base_url.port
    connection = socket.create_connection(address)
    connection.sendall(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    return connection


def test_a_worker_that_dies_is_replaced_and_counted():
    with hosting("saboteur") as served:
        worker = served.http.get("/live").json()["workers"][0]["pid"]
        psutil.Process(worker).kill()
        assert served.embed("tea").status_code == 200
        served.until(lambda: served.http.get("/live").json()["restarts"] == 1)
        assert "memworker_worker_restarts_total 1.0" in served.http.get("/metrics").text


def test_ctrl_c_is_answered_as_by_every_verb():
    with serving("--model", "echo", code=130) as served:
        assert served.stop(signal.SIGINT) == 130
        assert served.stderr.count("\n") == 1


def test_many_connections_that_say_nothing_hold_nobody_up(echo):
    address = echo.http.base_url.host, echo.http.base_url.port
    silent = [socket.create_connection(address) for _ in range(50)]
    try:
        done = threading.Event()
        answer = echo.embed(model="echo")
        done.set()
        assert answer.status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_request_that_takes_too_long_to_arrive_is_ended():
    with hosting("saboteur", options={"request_timeout_s": REQUEST_S}) as served:
        address = served.http.base_url.host, served.http.base_url.port
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{"
        for begun in (b"", b"GET /healthz HT", head):
            with socket.create_connection(address, timeout=PATIENCE_S) as connection:
                connection.sendall(begun)
                assert b" 408 " in connection.recv(1000)
                assert connection.recv(1000) == b""
        # An answer may take as long as it takes.
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(served.embed, "busy") for _ in range(8)]
            assert {answer.result().status_code for answer in asked} == {200}


def test_a_client_that_reads_nothing_is_given_up_in_time():
    told = {"loader": {"dim": 2048}, "options": {"request_timeout_s": REQUEST_S}}
    with hosting("saboteur", **told) as served, ExitStack() as held:
        # Replies of 16 MB, more than the system takes into its own buffers.
        for _ in range(3):
            held.enter_context(leaving(served, texts=2000))
        written = 'requests_total{route="/v1/embeddings",status="200"} 3.0'
        served.until(lambda: written in served.http.get("/metrics").text)
        served.until(lambda: _connections(served) <= 1)
        assert served.embed().status_code == 200
        assert served.stop() == 0 and "Traceback" not in served.stderr


def _connections(served):
    process = psutil.Process(served.process.pid)
    # Its name up to psutil 5, and from 6 on.
    held = process.net_connections() if psutil.version_info >= (6,) else process.connections()
    return sum(each.status == psutil.CONN_ESTABLISHED for each in held)


def test_the_parent_loads_no_model(minilm):
    assert minilm.embed(model="all-MiniLM-L6-v2").status_code == 200
    (worker,) = psutil.Process(minilm.process.pid).children()
    parents = {mapped.path for mapped in psutil.Process(minilm.process.pid).memory_maps()}
    workers = {mapped.path for mapped in worker.memory_maps()}
    for library in ("onnxruntime", "tokenizers"):
        assert any(library in path for path in workers)
        assert not any(library in path for path in parents)


def test_a_missing_package_is_said_with_the_command_that_gets_it():
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['memworker', 'serve']\n"
        "from memworker.cli.main import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2 and "pip install 'memworker[serve]'" in done.stderr
    assert "uvicorn" in done.stderr and "Traceback" not in done.stderr


def test_a_server_without_workers_says_so_and_recovers(tmp_path):
    marker, patience = tmp_path / "marker", {"stall_timeout_s": 1.5}
    with hosting("loads_unless", loader={"marker": str(marker)}, pool=patience) as served:
        assert served.embed().status_code == 200
        assert "memworker_workers_ready 1.0" in served.http.get("/metrics").text
        marker.touch()
        (worker,) = served.http.get("/live").json()["workers"]
        psutil.Process(worker["pid"]).kill()
        # It waits for a worker in vain first, and is told so in the end.
        refused = served.embed()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
        assert int(refused.headers["retry-after"]) >= 1
        assert served.http.get("/healthz").status_code == 200
        assert served.http.get("/readyz").json()["error"]["code"] == "no_worker"
        assert served.http.get("/live").json()["state"] == "no_worker"
        assert "memworker_workers_ready 0.0" in served.http.get("/metrics").text
        assert served.http.post("/embed", json={"inputs": "tea"}).status_code == 503
        marker.unlink()
        served.until(lambda: served.embed().status_code == 200)
        assert served.http.get("/readyz").status_code == 200
        assert served.stop() == 0
        assert served.stderr.count("requests are refused") == 1
        assert "could not start: the system gave no more memory" in served.stderr


def test_a_second_signal_is_heard_while_the_pool_closes(tmp_path):
    with hosting("saboteur", stuck=str(tmp_path / "never")) as served:
        assert served.embed().status_code == 200
        served.process.send_signal(signal.SIGTERM)
        served.until(lambda: _refuses_connections(served))
        served.until(lambda: _ended(served))
        assert served.wait() == 143


def _refuses_connections(served):
    try:
        served.http.get("/healthz")
    except httpx.TransportError:
        return True
    return False
