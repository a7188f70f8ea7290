"""The routes, in plain ASGI: read a body, embed, write a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from starlette.types import Message, Receive, Scope, Send

from memworker.serve import inputs, replies
from memworker.serve.bodies import ModelList
from memworker.serve.refusals import Headers, Refusal
from memworker.serve.service import ClientGone, Service, State

JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain; charset=utf-8")
_Answer = Callable[[Service, Scope, Receive], Awaitable[bytes]]


class Route:
    """An ASGI application of one answer: JSON, or the refusal that it raised."""

    def __init__(
        self, service: Service, answer: _Answer, shape: Callable[[Refusal], bytes]
    ) -> None:
        self._service = service
        self._answer = answer
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._answer(self._service, scope, receive)
        except Refusal as refusal:
            await respond(send, refusal.status, self._shape(refusal), refusal.headers)
        except ClientGone:
            pass
        else:
            await respond(send, 200, body, [])


async def embeddings(service: Service, scope: Scope, receive: Receive) -> bytes:
    """Answer `POST /v1/embeddings`."""
    body = await read_body(service, scope, receive)
    request = inputs.embeddings_request(body)
    service.check_model(request.model)
    given = inputs.of_embeddings(request, service.options)
    dim = service.dimensions(request.dimensions)
    embedded = await service.embed(given, lambda: _left(receive))
    replies.refuse_failures(embedded, "input")
    if not given.truncate:
        replies.refuse_truncated(embedded, service.pool.identity.max_tokens, "input")
    base64 = request.encoding_format == "base64"
    return replies.embeddings_reply(embedded, request.model, base64=base64, dim=dim)


async def models(service: Service, scope: Scope, receive: Receive) -> bytes:
    """Answer `GET /v1/models`."""
    return msgspec.json.encode(ModelList(service.models()))


async def model(service: Service, scope: Scope, receive: Receive) -> bytes:
    """Answer `GET /v1/models/{name}`."""
    name = scope["path_params"]["name"]
    service.check_model(name)
    return msgspec.json.encode(next(m for m in service.models() if m.id == name))


async def healthz(service: Service, scope: Scope, receive: Receive) -> bytes:
    """Answer `GET /healthz`: the process lives."""
    return b'{"status":"ok"}'


async def readyz(service: Service, scope: Scope, receive: Receive) -> bytes:
    """Answer `GET /readyz`: requests are taken, or 503."""
    if service.state is State.READY:
        return b'{"status":"ready"}'
    raise Refusal(503, f"The server is {service.state.value}.", code=service.state.value)


async def read_body(service: Service, scope: Scope, receive: Receive) -> bytes:
    """Read a body as it comes; Refusal 413 as soon as it is too large, 408 when it is too slow."""
    most = service.options.max_body_bytes
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise _too_large(most)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        return body
    try:
        async with asyncio.timeout(service.options.body_timeout_s):
            return await _rest_of_body(message, receive, most)
    except TimeoutError:
        raise Refusal(408, "The body did not arrive in time.", code="body_timeout") from None


async def respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole JSON reply."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {"type": "http.response.start", "status": status, "headers": [JSON, length, *headers]}
    )
    await send({"type": "http.response.body", "body": body})


async def _rest_of_body(message: Message, receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body is over the {most:,} bytes that are taken.", code="too_large")
