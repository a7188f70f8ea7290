"""The live page in a real browser: it fills itself, and what it is told stays text."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from memworker.serve import page
from memworker.serve.live import LiveWindow
from memworker.serve.meanings import meaning
from memworker.serve.metrics import Metrics
from tests import PATIENCE_S
from tests.serve.processes import serving

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=document.title='taken'>"
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def served():
    names = ("--served-model-name", "echo", "--served-model-name", HOSTILE)
    with serving("--model", "echo", *names) as served:
        served.embed(["tea"] * 3, model="echo")
        served.embed(model="other")
        yield served


def browse(served, tmp_path, *options):
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, *options, f"{served.url}/"],
        capture_output=True,
        timeout=PATIENCE_S,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(), done.stderr.decode(errors="replace")


def inside(dom, id):
    return re.search(rf'id="{id}"[^>]*>(.*?)<', dom, re.DOTALL)[1]


@needs_browser
def test_the_page_fills_itself_and_what_it_is_told_stays_text(served, tmp_path):
    dom, said = browse(served, tmp_path, "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert inside(dom, "state") == "ready"
    assert "echo" in inside(dom, "model") and "384 dimensions" in inside(dom, "model")
    assert "ms" in inside(dom, "p50")
    assert "not known for this model" in dom
    assert "model_<wbr>not_<wbr>found" in dom and "MB</td>" in dom
    # A name of the model that would be markup, and would take the title, is text.
    assert "&lt;img" in dom and "<img" not in dom and "<title>memworker</title>" in dom
    assert "Content Security Policy" not in said


@needs_browser
def test_it_explains_and_shows_how_to_ask(served, tmp_path):
    dom, _ = browse(served, tmp_path, "--dump-dom")
    assert "a model's name that is not served" in dom and "numbers of 0" not in dom
    assert f"curl {served.url}/v1/embeddings" in dom and 'class="old"' not in dom
    assert 'href="/metrics"' in dom and 'href="/openapi.json"' in dom
    assert inside(dom, "total") == "3" and "tokens, " in inside(dom, "totals")
    assert "highest 1<" not in dom


@contextmanager
def behind(served, answers):
    """A proxy at a path of its own, that lets so many questions for numbers pass."""
    left = [answers]

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.removeprefix("/pre/fix")
            left[0] -= path == "/live"
            if not self.path.startswith("/pre/fix/") or left[0] < 0:
                self.send_error(502)
                return
            answer = served.http.get(path)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{proxy.server_address[1]}/pre/fix")
        proxy.shutdown()


@needs_browser
def test_behind_a_path_it_works_and_what_is_old_looks_old(served, tmp_path):
    with behind(served, answers=100) as place:
        dom, _ = browse(place, tmp_path, "--dump-dom")
        assert inside(dom, "state") == "ready" and 'href="/pre/fix/metrics"' in dom
        assert "/pre/fix/v1/embeddings" in dom
    with behind(served, answers=1) as place:
        dom, _ = browse(place, tmp_path, "--dump-dom")
        assert inside(dom, "state").startswith("refused (502)") and 'class="old"' in dom
        assert inside(dom, "total") == "3"


def test_errors_of_one_kind_are_one_with_their_meaning():
    window = LiveWindow(Metrics(lambda: None, lambda: 0))
    for _ in range(3):
        window.answered("/embed", 400, 0.1, "invalid_json")
    window.answered("/embed", 503, 0.1, "starting")
    window.answered("/embed", 400, 0.1, "invalid_json")
    window.answered("/embed", 418, 0.1, "unheard_of")
    told = [(each.code, each.count, each.says) for each in window.errors()]
    assert told[0] == ("unheard_of", 1, "the request was wrong")
    assert told[1] == ("invalid_json", 4, "the body was no JSON")
    assert told[2][:2] == ("starting", 1)
    for number in range(30):
        window.answered("/embed", 400, 0.1, f"code {number}")
    assert len(window.errors()) == 12


def test_every_code_that_is_refused_with_has_its_meaning():
    folder = Path(page.__file__).parent
    written = "".join(file.read_text() for file in folder.glob("*.py"))
    codes = set(re.findall(r'code="([a-z_]+)"', written))
    assert len(codes) > 10
    assert not [code for code in codes if meaning(400, code) == "the request was wrong"]


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_photographed(served, tmp_path, width):
    shot = tmp_path / "page.png"
    browse(served, tmp_path, f"--screenshot={shot}", f"--window-size={width},900")
    image = shot.read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", image[16:20])[0] == width
    # An empty page compresses to a few kilobytes.
    assert len(image) > 15_000
    if kept := os.environ.get("MEMWORKER_KEEP_SCREENSHOTS"):
        shutil.copy(shot, f"{kept}/page-{width}.png")


def test_nothing_else_may_run_in_it(served):
    answer = served.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_it_has_no_outside_address_and_writes_text():
    text = page.html().decode()
    assert "//" not in re.sub(r"data:,", "", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    assert len(text) < 16_000
