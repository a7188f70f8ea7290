"""How a memory server is served: over stdin and stdout, or over HTTP to those who may ask.

Over HTTP the rules are those of `memworker serve`: off loopback a key is wanted, and no page of
another origin may ask, whatever name it has pointed here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from memworker.errors import MemworkerError, UsageError
from memworker.integrations.mcp import MemoryServer
from memworker.integrations.pools import framework

with framework("mcp"):
    import uvicorn
    from mcp.server.stdio import stdio_server
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp.shared.message import SessionMessage
    from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError

__all__ = ["PATH", "run", "run_http"]

PATH = "/mcp"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Streams stay open as long as their clients live: what was asked is answered sooner.
_DRAIN_S = 5

_log = logging.getLogger(__name__)
App = Callable[[Any, Any, Any], Any]


def run(server: MemoryServer) -> NoReturn:
    """Serve over stdin and stdout until stdin ends or a signal comes, and end the process.

    It ends by itself because the thread that reads stdin cannot be stopped. Exit
    codes: 0 at the end of stdin, 1 when the client's end broke, 128 + n after signal n.
    """
    asyncio.run(_serve(server))
    raise AssertionError("serving ends with the process")


def run_http(
    server: MemoryServer,
    listener: socket.socket,
    *,
    key: str | None,
    hosts: frozenset[str],
    on_listening: Callable[[str], None],
) -> NoReturn:
    """Serve over HTTP at `PATH` until a signal comes, and end the process.

    `hosts` are the names that a Host header may have where there is no `key`. Exit codes: 0 after
    SIGTERM, 130 after Ctrl-C; a second signal ends at once.
    """
    asyncio.run(_serve_http(server, listener, Guard(_app(server), key, hosts), on_listening))
    raise AssertionError("serving ends with the process")


class Guard:
    """An ASGI application that refuses who may not ask, and hands on the rest."""

    def __init__(self, app: App, key: str | None, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, message = refused
        told = {
            "jsonrpc": "2.0",
            "id": None,
            "error": {"code": INVALID_REQUEST, "message": message},
        }
        body = json.dumps(told).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Mapping[str, Any]) -> tuple[int, str] | None:
        heads = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = heads.get(b"host", ""), heads.get(b"origin")
        # With a key no foreign page gets in, whatever name it has the browser say.
        if self._key is None and _name(host) not in self._hosts:
            return 421, f"This server does not go by {host!r}; --allowed-host adds a name."
        if origin is not None and not self._is_own(origin, host):
            return 403, f"A page of {origin!r} may not ask; --allowed-host adds its name."
        given = heads.get(b"authorization", "").encode()
        scheme, _, said = given.partition(b" ")
        right = scheme.lower() == b"bearer" and hmac.compare_digest(said.strip(), self._key or b"")
        if self._key is not None and not right:
            return 401, "The key is missing or wrong; send it as: Authorization: Bearer KEY."
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        place = urlsplit(origin).netloc
        return bool(place) and (place.lower() == host.lower() or _name(place) in self._hosts)


class _Answered:
    """The messages that come, without those that are none: these are answered at once.

    The SDK leaves them out without a word, and a client waits for nothing.
    """

    def __init__(self, read: Any, write: Any) -> None:
        self._read, self._write = read, write

    @property
    def last_context(self) -> Any:
        return getattr(self._read, "last_context", None)

    async def receive(self) -> Any:
        while isinstance(item := await self._read.receive(), Exception):
            await self._write.send(SessionMessage(_refused(item)))
        return item

    async def aclose(self) -> None:
        await self._read.aclose()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._each()

    async def _each(self) -> AsyncIterator[Any]:
        async for item in self._read:
            if isinstance(item, Exception):
                await self._write.send(SessionMessage(_refused(item)))
            else:
                yield item

    async def __aenter__(self) -> _Answered:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _stdio(server: MemoryServer) -> None:
    lowest = server._lowlevel_server
    async with stdio_server() as (read, write):
        await lowest.run(_Answered(read, write), write, lowest.create_initialization_options())


async def _serve(server: MemoryServer) -> NoReturn:
    stopped = _stopped_by_signal()
    serving = asyncio.ensure_future(_stdio(server))
    await _either(serving, stopped)
    code = 128 + stopped.result() if stopped.done() else 0
    if serving.done() and (error := serving.exception()):
        _log.warning("the client's end broke: %r", error)
        code = 1
    # From in here: leaving the loop would wait for the thread that reads stdin.
    await _end(server, code)


async def _serve_http(
    server: MemoryServer,
    listener: socket.socket,
    app: App,
    on_listening: Callable[[str], None],
) -> NoReturn:
    stopped = _stopped_by_signal()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    serving_http = _Uvicorn(config)
    serving = asyncio.ensure_future(serving_http.serve(sockets=[listener]))
    on_listening(_address(listener))
    await _either(serving, stopped)
    serving_http.should_exit = True
    await asyncio.wait({serving})
    if error := serving.exception():
        _log.warning("serving ended: %r", error)
        await _end(server, 1)
    number = stopped.result() if stopped.done() else signal.SIGTERM
    await _end(server, 0 if number != signal.SIGINT else 130)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Any:
        # They are ours: a memory is to be closed before the process ends.
        yield


def _app(server: MemoryServer) -> App:
    # Who may ask is the guard's to say, for names as for keys.
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    made: App = server.streamable_http_app(streamable_http_path=PATH, transport_security=security)
    return made


def _refused(error: Exception) -> Any:
    """Make the answer to what is no message: no JSON, or not of the protocol."""
    kinds = [each["type"] for each in getattr(error, "errors", list)()]
    if "json_invalid" in kinds:
        told = ErrorData(code=PARSE_ERROR, message="Parse error: this is no JSON")
    else:
        told = ErrorData(
            code=INVALID_REQUEST, message="Invalid request: no message of JSON-RPC 2.0"
        )
    return JSONRPCError(jsonrpc="2.0", id=None, error=told)


async def _either(*ends: asyncio.Future[Any]) -> None:
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)


def _stopped_by_signal() -> asyncio.Future[int]:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()
    for number in _SIGNALS:
        loop.add_signal_handler(number, _stop, stopped, number)
    return stopped


def _stop(stopped: asyncio.Future[int], number: int) -> None:
    if stopped.done():
        _leave(128 + number)
    stopped.set_result(number)


async def _end(server: MemoryServer, code: int) -> NoReturn:
    try:
        await server.close()
    except (MemworkerError, TimeoutError) as error:
        _log.warning("the memory was not closed: %s", error)
        code = code or 1
    _leave(code)


def _leave(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


def _name(host: str) -> str:
    """Give a host's name without port, in lower case, as a Host header or an origin has it."""
    try:
        found = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
    return f"[{found}]" if ":" in found else found


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


def listen(host: str, port: int) -> socket.socket:
    """Take the address. Raises UsageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened on: {error.strerror}; --port takes another, or 0"
            " for any free one"
        ) from error
