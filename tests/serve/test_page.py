"""The live page in a real browser: it fills itself, and what it is told stays text."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess

import pytest

from memworker.serve import page
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
