"""One connection: uvicorn's, with bounds on their number and on what is on its way."""

from __future__ import annotations

import asyncio
import resource
from typing import ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Request line and headers together; clients send a few hundred bytes.
MAX_HEAD_BYTES = 64 << 10
_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_SLOW = b"408 Request Timeout"
_TOO_MANY = b"503 Service Unavailable"
# Descriptors for everything else: a worker that is replaced needs some.
_KEPT_DESCRIPTORS = 128
_MOST_CONNECTIONS = 16_384


def patient(request_timeout_s: float) -> type[Connection]:
    """Give a kind of connection on which a request may take so long to arrive.

    That is from its first byte to its last, and from connecting to the first byte;
    a reply of which nothing is taken for as long is given up.
    """
    bounds = {"request_timeout_s": request_timeout_s, "most": most_connections()}
    return type("Connection", (Connection,), bounds)


def most_connections() -> int:
    """Tell how many connections the process's file descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, max(soft - _KEPT_DESCRIPTORS, soft // 2))


class Connection(HttpToolsProtocol):
    """Ends a connection whose request is too long on its way, or its head too large.

    uvicorn bounds neither: it would collect headers for ever, before a body and
    after one (trailers), and keep replies for a client that reads none.
    """

    request_timeout_s: ClassVar[float]
    most: ClassVar[int]
    _in_head = True
    _whole = False
    # Since the head's or the body's last byte: the parser keeps what it is in the middle of.
    _loose_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > self.most:
            self._end(_TOO_MANY)
        else:
            self._set_deadline()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._drop_reader()

    def data_received(self, data: bytes) -> None:
        self._loose_bytes += len(data)
        super().data_received(data)
        if not self._whole and self._loose_bytes > MAX_HEAD_BYTES:
            self._end(_TOO_LARGE)
        elif self._whole:
            self._drop_deadline()
        elif self._deadline is None:
            self._set_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._whole, self._loose_bytes = True, False, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadline()
        self._drop_reader()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.request_timeout_s, self._end, _TOO_SLOW)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _watch_reader(self, unread: int) -> None:
        self._drop_reader()
        self._unread = self.loop.call_later(self.request_timeout_s, self._look, unread)

    def _drop_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _look(self, before: int) -> None:
        """Go on waiting for a client that has read some since the last look, and no other."""
        unread = self.transport.get_write_buffer_size()
        if unread < before:
            self._watch_reader(unread)
        else:
            self.transport.abort()

    def _end(self, status: bytes) -> None:
        self._drop_deadline()
        if self.transport.is_closing():
            return
        # Where a reply has begun, another status line would only confuse.
        if self.cycle is None or self._in_head or not self.cycle.response_started:
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status
            )
        self.transport.close()
