"""Bodies in and replies out, in plain ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from memworker.serve.packing import Unpacker, unpacker
from memworker.serve.refusals import Headers, Refusal

AsgiScope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
_NO_CONTENT = 204


class ClientGone(Exception):
    """The client closed its connection; no answer can be sent."""


async def read_body(scope: AsgiScope, receive: Receive, most: int) -> bytes:
    """Read a body of at most so many bytes; Refusal 413 as soon as it is larger.

    One that came packed is unpacked: it may have so many bytes before and after.
    """
    unpack: Unpacker = _plain
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise _too_large_error(most)
        if name == b"content-encoding":
            unpack = unpacker(value)
    whole = unpack(await _whole(receive, most), most)
    if len(whole) > most:
        raise _too_large_error(most)
    return whole


async def _whole(receive: Receive, most: int) -> bytes:
    message = await receive()
    body = _part(message)
    if len(body) <= most and not message.get("more_body"):
        return body
    whole = bytearray(body)
    while len(whole) <= most:
        if not message.get("more_body"):
            return bytes(whole)
        message = await receive()
        whole += _part(message)
    raise _too_large_error(most)


async def disconnected(receive: Receive) -> None:
    """Return when the client has left; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond(
    send: Send,
    status: int,
    body: bytes,
    headers: Headers | None = None,
    *,
    content_type: bytes = JSON,
) -> None:
    """Send a whole reply."""
    own = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    if status == _NO_CONTENT:
        own = []
    await send(
        {"type": "http.response.start", "status": status, "headers": [*own, *(headers or [])]}
    )
    await send({"type": "http.response.body", "body": body})


def _plain(body: bytes, most: int) -> bytes:
    return body


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    part: bytes = message.get("body", b"")
    return part


def _too_large_error(most: int) -> Refusal:
    return Refusal(413, f"The body is over the {most:,} bytes that are taken.", code="too_large")
