"""A real Chromium, driven over its own pipe: pages opened, touched, asked and photographed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import PATIENCE_S

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
_KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40}


class Page:
    """One tab. `problems` are what the page's script raised, and what its policy refused."""

    def __init__(self, write, read):
        self._write, self._read, self._buffer, self._number = write, read, b"", 0
        self.problems, self.asked_for, self._session, self._loaded = [], [], None, False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url, *, width=1280, height=900, dark=False):
        self.problems.clear(), self.asked_for.clear()
        phone = width < 600
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", **sizes)
        self._call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._loaded = False
        self._call("Page.navigate", url=url)
        self._until(lambda: self._loaded)

    def ask(self, script):
        """Return what an expression of JavaScript gives."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def text(self, selector):
        return self.ask(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            facts = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
            # Enter presses a button only with the character that it types.
            typed = {"text": "\r"} if (key, kind) == ("Enter", "keyDown") else {}
            self._call("Input.dispatchKeyEvent", type=kind, **facts, **typed)

    def type(self, text):
        self._call("Input.insertText", text=text)

    def tap(self, x, y):
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def hover(self, x, y):
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            facts = {"x": x, "y": y, "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, **facts)

    def middle(self, selector):
        """Bring an element into view and say where its middle is."""
        return self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )

    def photograph(self):
        """Return a PNG of the whole page."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answers = []
        self._until(lambda: bool(answers), self._number, answers)
        assert "error" not in answers[0], (method, answers[0])
        return answers[0]["result"]

    def _until(self, done, number=None, answers=None):
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            while b"\0" not in self._buffer:
                ready, _, _ = select.select([self._read], [], [], deadline - time.monotonic())
                assert ready, "the browser does not answer"
                read = os.read(self._read, 1 << 16)
                assert read, "the browser has ended"
                self._buffer += read
            line, self._buffer = self._buffer.split(b"\0", 1)
            message = json.loads(line)
            if message.get("id") == number and answers is not None:
                answers.append(message)
            self._heard(message.get("method"), message.get("params", {}))

    def _heard(self, method, facts):
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(facts["exceptionDetails"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.problems.append(facts["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked_for.append(facts["request"]["url"])


@contextmanager
def browser(folder: Path):
    """Start Chromium with a profile of its own, and end it; skip the test where there is none."""
    if PROGRAM is None:
        pytest.skip("no Chromium here")
    to_it, write = os.pipe()
    read, from_it = os.pipe()
    command = [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    # It reads from descriptor 3 and writes to 4. Both ends are moved out of their way first.
    moved = (
        "import os, sys; a, b = (os.dup(os.dup(os.dup(int(fd)))) for fd in sys.argv[1:3]);"
        "os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
    )
    shell = [sys.executable, "-I", "-c", moved, str(to_it), str(from_it), *command]
    with subprocess.Popen(
        shell, pass_fds=(to_it, from_it), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(to_it), os.close(from_it)
        try:
            yield Page(write, read)
        finally:
            process.terminate()
            os.close(write), os.close(read)
