"""Behind nginx, under a path: what comes through, and how many connections that takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import httpx
import pytest

from tests import PATIENCE_S
from tests.serve.processes import serving

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")

TEXT = {"inputs": "tea"}
PASSED_ON = 'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;'
CONFIG = """
{user} daemon off; master_process off; pid {home}/pid; error_log {home}/errors;
events {{ }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  upstream memworker {{ server {server}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location /vectors/ {{ proxy_pass http://memworker/; {passed_on} }}
    location /streamed/ {{
      proxy_pass http://memworker/; {passed_on} proxy_request_buffering off;
    }}
  }}
}}
"""


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """A server of the echo encoder, and a client of the nginx in front of it."""
    home = tmp_path_factory.mktemp("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving("--model", "echo", "--max-body", "100000") as served:
        told = {"home": home, "port": port, "passed_on": PASSED_ON}
        told["server"] = served.url.removeprefix("http://")
        told["user"] = "user root;" if os.geteuid() == 0 else ""
        (home / "config").write_text(CONFIG.format(**told))
        command = ["nginx", "-c", str(home / "config"), "-e", str(home / "errors")]
        nginx = subprocess.Popen(command)
        try:
            transport = httpx.HTTPTransport(retries=8)  # until it listens
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, transport=transport, timeout=PATIENCE_S) as client:
                yield client, served
        finally:
            nginx.terminate()
            nginx.wait(PATIENCE_S)


def test_a_path_prefix_leads_to_every_route_and_to_the_page(proxied):
    client, _ = proxied
    assert len(client.post("/vectors/embed", json=TEXT).json()[0]) == 384
    assert client.get("/vectors/readyz").json() == {"status": "ready"}
    page = client.get("/vectors/")
    # What the page asks for is beside it, wherever it lies.
    assert page.status_code == 200 and 'fetch("/' not in page.text


@pytest.mark.parametrize("path", ["vectors", "streamed"])
def test_a_refusal_of_a_large_body_comes_through_as_it_is(proxied, path):
    client, _ = proxied
    # nginx ends a connection whose body it has not read to its end, with or without a word.
    alone = {"connection": "close"}
    refused = client.post(f"/{path}/embed", content=b"x" * 5_000_000, headers=alone)
    assert refused.status_code == 413 and refused.json()["error_type"]
    assert client.post(f"/{path}/embed", json=TEXT).status_code == 200


def test_an_offer_of_another_protocol_is_ignored(proxied):
    client, _ = proxied
    offer = {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2-settings": "AAMAAABk",
    }
    assert client.post("/vectors/embed", json=TEXT, headers=offer).status_code == 200


def test_requests_share_connections(proxied):
    client, served = proxied

    def ports():
        port = served.http.base_url.port
        with open("/proc/net/tcp") as table:
            rows = [line.split() for line in table][1:]
        return {row[1] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"}

    client.post("/vectors/embed", json=TEXT)
    before = ports()
    for _ in range(10):
        client.post("/vectors/embed", json=TEXT)
    assert before and ports() == before
