"""One connection: uvicorn's, with bounds on their number and on what is on its way."""

from __future__ import annotations

import asyncio
import resource
import socket
from http import HTTPStatus
from typing import ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from memworker.serve.refusals import Refusal

# Request line and headers together; clients send a few hundred bytes.
MAX_HEAD_BYTES = 64 << 10
_NO_REQUEST, _TOO_LARGE, _TOO_SLOW, _TOO_MANY = 400, 431, 408, 503
_WORDS = {
    _NO_REQUEST: ("invalid_request", "This is no HTTP request."),
    _TOO_LARGE: ("too_large", "The request's head, or what follows its body, is over 64 KiB."),
    _TOO_SLOW: ("request_timeout", "The request took too long to arrive."),
    _TOO_MANY: ("too_many_connections", "The server has no room for another connection."),
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# By then a system has answered for a program that is gone.
_PROBE_S = 0.2
_OFFERS = frozenset({b"upgrade", b"http2-settings"})
_STAYS = frozenset({b"close", b"keep-alive"})
_TCP_CLOSED = 7
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
    _probe: asyncio.TimerHandle | None = None
    _upgrading = False

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
        self._feed(data)
        if not self._whole and self._loose_bytes > MAX_HEAD_BYTES:
            self._end(_TOO_LARGE)
        elif self._whole:
            self._drop_deadline()
        elif self._deadline is None:
            self._set_deadline()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has only ended its own sending; drop one that is gone.

        Both look the same until something is sent: an interim reply, which clients skip, is
        answered by a system whose program is gone.
        """
        waits = self._whole and self.cycle is not None and not self.cycle.response_complete
        if not waits or self.transport.is_closing():
            return False
        self.cycle.keep_alive = False
        if self.cycle.scope["http_version"] == "1.1":
            self._probe = self.loop.call_later(_PROBE_S, self._ask_whether_gone)
        return True

    def _ask_whether_gone(self) -> None:
        # Most are answered by now.
        if self.cycle.response_started or self.transport.is_closing():
            return
        self.transport.write(_CONTINUE)
        self._probe = self.loop.call_later(_PROBE_S, self._look_whether_gone)

    def _look_whether_gone(self) -> None:
        probed = self.transport.get_extra_info("socket")
        if not self.transport.is_closing() and (probed is None or _reset(probed)):
            self.transport.abort()

    def _feed(self, data: bytes) -> None:
        self._upgrading = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as found:
            self._go_on_without_upgrade(data[found.args[0] :])
        except httptools.HttpParserError:
            self._end(_NO_REQUEST)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read a request that offers another protocol as one that does not.

        The parser leaves what follows such a head to that protocol: a body too.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._end(_NO_REQUEST)
            return
        head = [b"%b %b HTTP/1.1\r\n" % (method, self.url)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() in _STAYS)
            if name not in _OFFERS and value:
                head.append(b"%b: %b\r\n" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"".join([*head, b"\r\n", rest]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._whole, self._loose_bytes = True, False, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        # Of such a request the parser gives a head, and no body: it comes by once more.
        self._upgrading = self.parser.should_upgrade()
        if self._upgrading:
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._whole = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_deadline()
        self._drop_reader()
        if self._probe is not None:
            self._probe.cancel()
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

    def _end(self, status: int) -> None:
        self._drop_deadline()
        if self.transport.is_closing():
            return
        # Where a reply has begun, another status line would only confuse.
        if self.cycle is None or self._in_head or not self.cycle.response_started:
            self.transport.write(_reply(status))
        self.transport.close()


def _reply(status: int) -> bytes:
    code, message = _WORDS[status]
    _, body = Refusal(status, message, code=code).openai()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%b"
        % (status, HTTPStatus(status).phrase.encode(), len(body), body)
    )


def _reset(probed: socket.socket) -> bool:
    """Tell whether a connection was ended by the other side's system."""
    if probed.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return True
    if probed.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
        return False
    return probed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSED
