"""A real `memworker serve` for clients to talk to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests import PATIENCE_S

COMMAND = Path(sys.executable).with_name("memworker")


@contextmanager
def serving(*options, key=None):
    """Run the server on any free port; yields its base URL for OpenAI's clients."""
    environment = {**os.environ, "MEMWORKER_API_KEY": key or ""}
    command = [COMMAND, "serve", "--port", "0", "--workers", "1", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield _address(server) + "/v1"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=PATIENCE_S)


def _address(server):
    said = []
    for line in server.stderr:
        said.append(line)
        if found := re.search(r" on (http://\S+)", line):
            return found.group(1)
    raise AssertionError("the server ended: " + "".join(said))
