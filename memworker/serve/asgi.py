"""Bodies in and replies out, in plain ASGI."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope, Send

from memworker.serve.options import ServeOptions
from memworker.serve.refusals import Headers, Refusal

JSON = b"application/json"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, options: ServeOptions) -> bytes:
    """Read a body as it comes; Refusal 413 as soon as it is too large, 408 when it is too slow."""
    most = options.max_body_bytes
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise _too_large(most)
    try:
        async with asyncio.timeout(options.body_timeout_s):
            return await _read(receive, most)
    except TimeoutError:
        raise Refusal(408, "The body did not arrive in time.", code="body_timeout") from None


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
    await send(
        {"type": "http.response.start", "status": status, "headers": [*own, *(headers or [])]}
    )
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, most: int) -> bytes:
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
    raise _too_large(most)


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    part: bytes = message.get("body", b"")
    return part


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body is over the {most:,} bytes that are taken.", code="too_large")
