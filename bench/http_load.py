"""A load of our own for the server: N clients on one connection each, asking as fast as answered.

It writes ready bytes to sockets and reads as little of an answer as it must, so
that a core of load is much more than a core of server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length: "


@dataclass(slots=True)
class Outcome:
    """What a load met: seconds each answered request took, and answers by status."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentiles_ms(self) -> dict[str, float]:
        """Give the 50th, 95th and 99th percentile in milliseconds."""
        if not self.latencies:
            return {}
        values = np.percentile(self.latencies, (50, 95, 99)) * 1e3
        return dict(zip(("p50_ms", "p95_ms", "p99_ms"), values.round(2).tolist(), strict=True))


def request(url: str, model: str, texts: Sequence[str]) -> bytes:
    """Write a request for the vectors of some texts, as OpenAI's client asks for them."""
    body = json.dumps(
        {
            "model": model,
            "input": texts[0] if len(texts) == 1 else list(texts),
            "encoding_format": "base64",
        }
    ).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def each_once(url: str, requests: Sequence[bytes], clients: int) -> Outcome:
    """Send every request once, over `clients` connections."""
    return _run(_load(url, iter(requests), clients, seconds=None))


def for_seconds(url: str, requests: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    """Send requests in turn for some seconds, and at least one a connection."""
    return _run(_load(url, itertools.cycle(requests), clients, seconds))


def _run(load: Coroutine[Any, Any, Outcome]) -> Outcome:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load)


async def _load(
    url: str, requests: Iterator[bytes], clients: int, seconds: float | None
) -> Outcome:
    loop, outcome = asyncio.get_running_loop(), Outcome()
    host, port = urlsplit(url).hostname, urlsplit(url).port
    made = [Client(requests, outcome) for _ in range(clients)]
    for client in made:
        await loop.create_connection(lambda client=client: client, host, port)
    # The time begins when all are connected, however long that took.
    started = time.perf_counter()
    for client in made:
        client.ask()
    for client in made:
        client.until = None if seconds is None else started + seconds
    await asyncio.gather(*(client.done for client in made))
    outcome.seconds = time.perf_counter() - started
    return outcome


class Client(asyncio.Protocol):
    """One connection: asks, waits for the whole answer, asks again."""

    def __init__(self, requests: Iterator[bytes], outcome: Outcome) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.until: float | None = None
        self._requests = requests
        self._outcome = outcome
        self._answer = b""
        self._asked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))

    def ask(self) -> None:
        """Send the next request, or end where there is none or the time is over."""
        self._asked = time.perf_counter()
        over = self.until is not None and self._asked >= self.until
        wanted = None if over else next(self._requests, None)
        if wanted is None:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(wanted)

    def data_received(self, data: bytes) -> None:
        self._answer = self._answer + data if self._answer else data
        head = self._answer.find(_END_OF_HEAD)
        if head < 0:
            return
        start = self._answer.find(_LENGTH) + len(_LENGTH)
        length = int(self._answer[start : self._answer.find(b"\r", start)])
        if len(self._answer) < head + len(_END_OF_HEAD) + length:
            return
        status = int(self._answer[9:12])
        self._outcome.latencies.append(time.perf_counter() - self._asked)
        self._outcome.statuses[status] = self._outcome.statuses.get(status, 0) + 1
        self._answer = b""
        self.ask()
