"""The server's part of a soak: clients on a connection each, at a bounded rate, every answer read.

They ask what a server meets in a day: mostly single texts, some many, some wrong;
its metrics and its page's numbers; they go away, also in the middle of an answer,
and come again. Each vector is held against one that was computed beforehand.
"""

from __future__ import annotations

import asyncio
import json
import random
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from bench import http_load
from bench.soak_window import Window
from memworker import EmbeddingPool

# Whoever waits so long for an answer hangs.
PATIENCE_S = 60.0
ASKED_A_CONNECTION = 200
MANY = (1, 1, 1, 1, 1, 1, 2, 8, 32)
# A vector does not hang on its neighbours, but for the last bits of a float.
TOLERANCE = 1e-5
_LEAVES, _LOOKS, _WRONG = 0.01, 0.02, 0.03


@dataclass(frozen=True, slots=True)
class Known:
    """Texts, and the vectors that a server of this model must give them: float32[n, dim]."""

    model: str
    texts: Sequence[str]
    vectors: npt.NDArray[np.float32]

    @classmethod
    def by(cls, model: str, precision: str, texts: Sequence[str]) -> Known:
        """Embed the texts in a pool of this process, which is closed again."""
        with EmbeddingPool(model, precision=precision, workers=1) as pool:
            return cls(model, texts, np.array(pool.embed(texts)))


class Clients:
    """Asks a server from a thread of its own, until it is told to stop."""

    def __init__(self, url: str, known: Known, clients: int, per_second: float) -> None:
        self.window = Window()
        self._url, self._known = url, known
        self._clients, self._every_s = clients, clients / per_second
        self._stopping = False
        self._thread = Thread(target=lambda: asyncio.run(self._all()), name="soak-clients")

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        due = monotonic() + chance.uniform(0, self._every_s)
        while not self._stopping:
            try:
                async with Connection(self._url) as connection:
                    for _ in range(ASKED_A_CONNECTION):
                        # A tenth each way, so that they do not all come at once.
                        due = max(due, monotonic()) + self._every_s * chance.uniform(0.9, 1.1)
                        await asyncio.sleep(max(0.0, due - monotonic()))
                        if self._stopping or not await self._ask(connection, chance):
                            break
            except (OSError, EOFError, TimeoutError, ValueError, KeyError) as error:
                self.window.complain("server errors", f"{type(error).__name__}: {error}")

    async def _ask(self, connection: Connection, chance: random.Random) -> bool:
        """Ask once; tell whether the connection is still there."""
        draw = chance.random()
        if draw < _LEAVES:
            rows = self._rows(chance, 8)
            connection.send(http_load.request(self._url, self._known.model, self._texts(rows)))
            self.window.count("left without an answer")
            return False
        if draw < _LOOKS:
            await self._expect(connection, 200, _get(self._url, chance.choice(_PAGES)), "looks")
        elif draw < _WRONG:
            status, model, texts = chance.choice(_wrong(self._known.model))
            wrong = http_load.request(self._url, model, texts)
            await self._expect(connection, status, wrong, "refusals")
        else:
            await self._embed(connection, self._rows(chance, chance.choice(MANY)))
        return True

    async def _embed(self, connection: Connection, rows: list[int]) -> None:
        asked = http_load.request(self._url, self._known.model, self._texts(rows))
        kind = "one text" if len(rows) == 1 else "many texts"
        body = await self._expect(connection, 200, asked, kind)
        self.window.count("vectors", len(rows))
        if body is None:
            return
        given = [
            np.frombuffer(b64decode(row["embedding"]), "<f4") for row in json.loads(body)["data"]
        ]
        if len(given) != len(rows) or not np.allclose(
            given, self._known.vectors[rows], rtol=0, atol=TOLERANCE
        ):
            self.window.complain("wrong vectors", f"for rows {rows[:5]} of the texts")

    async def _expect(
        self, connection: Connection, status: int, asked: bytes, kind: str
    ) -> bytes | None:
        """Ask and wait; gives the body if the status is the one that it must be."""
        with self.window.timed(kind):
            got, body = await asyncio.wait_for(connection.ask(asked), PATIENCE_S)
        self.window.count(f"status {got}")
        if got == status:
            return body
        self.window.complain("wrong answers", f"{got} instead of {status}: {body[:200]!r}")
        return None

    def _rows(self, chance: random.Random, count: int) -> list[int]:
        return chance.sample(range(len(self._known.texts)), min(count, len(self._known.texts)))

    def _texts(self, rows: list[int]) -> list[str]:
        return [self._known.texts[row] for row in rows]


class Connection:
    """A connection that is kept: sends bytes as they are, reads whole answers."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port

    async def __aenter__(self) -> Connection:
        opening = asyncio.open_connection(self._host, self._port)
        self._reader, self._writer = await asyncio.wait_for(opening, PATIENCE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, asked: bytes) -> None:
        """Send a request whose answer nobody waits for."""
        self._writer.write(asked)

    async def ask(self, asked: bytes) -> tuple[int, bytes]:
        """Send a request; gives status and body of its answer."""
        self.send(asked)
        head = await self._reader.readuntil(b"\r\n\r\n")
        start = head.lower().index(b"content-length:") + len(b"content-length:")
        length = int(head[start : head.index(b"\r", start)])
        return int(head.split(b" ", 2)[1]), await self._reader.readexactly(length)


_PAGES = ("/metrics", "/live", "/healthz", "/readyz", "/", "/v1/models")


def _get(url: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()


def _wrong(model: str) -> list[tuple[int, str, list[Any]]]:
    return [(400, model, [""]), (400, model, ["x"] * 2049), (404, "another", ["tea"])]
