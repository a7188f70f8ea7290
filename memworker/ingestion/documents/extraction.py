"""PDF, DOCX and large pages to text, in a process of its own: bounded time, bounded memory."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import IO

from memworker import interpreters

EXTRACT_S = 60
NEEDS = {"pdf": "pypdfium2", "docx": "mammoth"}
INSTALL = "pip install 'memworker[documents]'"


class NotInstalled(Exception):
    """The package that reads this kind is not installed."""


class NotTaken(Exception):
    """Why a document gives no text, in words."""


@dataclass(slots=True)
class _Taker:
    process: subprocess.Popen[bytes]
    orders: int
    replies: int
    exchange: IO[bytes]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.orders)
        os.close(self.replies)
        self.exchange.close()


class Extraction:
    """Starts its process at the first document, and another one when that ended; `close` ends it.

    May be used by several threads, one after the other.
    """

    def __init__(self, seconds: int = EXTRACT_S) -> None:
        self._seconds = seconds
        self._child: _Taker | None = None
        self._turn = threading.Lock()

    def text(self, kind: str, data: bytes) -> tuple[str, str]:
        """Return the text and the title of a document. Raises NotInstalled, NotTaken."""
        if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
            raise NotInstalled(kind)
        with self._turn:
            reply = self._reply(kind, data)
        if "missing" in reply:
            raise NotInstalled(kind)
        if "refused" in reply:
            raise NotTaken(reply["refused"])
        return reply["text"], reply["title"]

    def close(self) -> None:
        """End the process, if there is one."""
        with self._turn:
            self._end()

    def _reply(self, kind: str, data: bytes) -> dict[str, str]:
        try:
            child = self._child or _started(self._seconds)
            self._child = child
            child.exchange.seek(0)
            child.exchange.truncate()
            child.exchange.write(data)
            child.exchange.flush()
            os.write(child.orders, f"{kind} {len(data)}\n".encode())
        except OSError as error:
            self._end()
            raise NotTaken(f"the process that reads it could not be used: {error}") from error
        size = self._awaited(child)
        reply: dict[str, str] = json.loads(os.pread(child.exchange.fileno(), size, 0))
        return reply

    def _awaited(self, child: _Taker) -> int:
        """Wait for the length of a reply; end the process where none comes."""
        until, said = time.monotonic() + self._seconds, b""
        ready = select.poll()
        ready.register(child.replies, select.POLLIN)
        while not said.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not ready.poll(1000 * left):
                self._end()
                raise NotTaken(f"taking it apart took more than {self._seconds} s")
            piece = os.read(child.replies, 64)
            if not piece:
                code = child.process.wait()
                self._end()
                raise NotTaken(f"it ended the process that took it apart (status {code})")
            said += piece
        return int(said)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def _started(seconds: int) -> _Taker:
    exchange = tempfile.TemporaryFile(prefix="memworker-", buffering=0)
    theirs_in, orders = os.pipe()
    replies, theirs_out = os.pipe()
    code = (
        "import sys; from memworker.ingestion.documents.extractor import serve;"
        " serve(*map(int, sys.argv[1:]))"
    )
    try:
        process = subprocess.Popen(
            interpreters.command(code, str(theirs_in), str(theirs_out), str(seconds)),
            stdin=exchange,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            # Ctrl-C is meant for the job, which ends this process itself.
            process_group=0,
            env=interpreters.environment(),
        )
    except OSError:
        os.close(orders)
        os.close(replies)
        exchange.close()
        raise
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return _Taker(process, orders, replies, exchange)
