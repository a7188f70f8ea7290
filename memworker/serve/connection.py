"""One connection: uvicorn's, with bounds on a request that is on its way."""

from __future__ import annotations

import asyncio
from typing import ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Request line and headers together; clients send a few hundred bytes.
MAX_HEAD_BYTES = 64 << 10
_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_SLOW = b"408 Request Timeout"


def patient(request_timeout_s: float) -> type[Connection]:
    """Give a kind of connection on which a request may take so long to arrive.

    That is from its first byte to its last, and from connecting to the first byte.
    """
    return type("Connection", (Connection,), {"request_timeout_s": request_timeout_s})


class Connection(HttpToolsProtocol):
    """Ends a connection whose request is too long on its way, or its head too large.

    uvicorn bounds neither: it would collect headers for ever.
    """

    request_timeout_s: ClassVar[float]
    _in_head = True
    _whole = False
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._end(_TOO_LARGE)
        elif self._whole:
            self._drop_deadline()
        elif self._deadline is None:
            self._set_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._whole, self._head_bytes = True, False, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.request_timeout_s, self._end, _TOO_SLOW)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

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
