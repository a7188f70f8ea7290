"""Real server processes, and what is asked of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests import PATIENCE_S

COMMAND = str(Path(sys.executable).with_name("memworker"))
ROOT = Path(__file__).parents[2]
KEY = "a-key-of-enough-characters"


class Served:
    """A server process; `url` is where it listens."""

    def __init__(self, process, url):
        self.process, self.url = process, url
        self.http = httpx.Client(
            base_url=url if url.startswith("http") else "http://socket", timeout=PATIENCE_S
        )
        self.stderr = ""

    def embed(self, text="tea", model="test", **fields):
        return self.http.post("/v1/embeddings", json={"model": model, "input": text, **fields})

    def stop(self, number=signal.SIGTERM):
        """Signal it, wait for its end, and give its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self):
        self.stderr += self.process.communicate(timeout=PATIENCE_S)[1]
        return self.process.returncode

    def until(self, question):
        """Ask until the answer is yes; what is asked for comes, or the test hangs."""
        deadline = time.monotonic() + PATIENCE_S
        while not question():
            assert time.monotonic() < deadline, "it never came to be"


@contextmanager
def serving(*options, key="", code=0):
    """Run `memworker serve`; it must end with `code` when it is told to."""
    command = [COMMAND, "serve", "--port", "0", "--workers", "1", *options]
    with _running(command, key) as served:
        yield served
        assert served.stop() == code, served.stderr
        assert "Traceback" not in served.stderr


@contextmanager
def hosting(kind, **told):
    """Run a server over a test's encoder; it is killed at the end if it still lives."""
    command = [sys.executable, "-m", "tests.serve.host", kind, json.dumps(told)]
    with _running(command, "") as served:
        yield served


@contextmanager
def _running(command, key):
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MEMWORKER_API_KEY": key},
    )
    said = ""
    try:
        for line in process.stderr:
            said += line
            if found := re.search(r"on ((?:http://|unix:)\S+)", line):
                served = Served(process, found.group(1))
                served.stderr = said
                break
        else:
            raise AssertionError(f"the server ended: {said}")
        with served.http:
            yield served
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
