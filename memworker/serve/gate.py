"""What every request passes first: who may ask, under which name, and what is counted.

A name that the server does not go by is refused, so that a web page cannot reach
it by having its own name point here (DNS rebinding). Where a key is wanted, or a socket's
file keeps others out, no such page gets further anyway, and any name will do. A page of
another origin is refused, but for those that may ask (CORS). The probes of an orchestrator
come by address and tell nothing: they pass.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from memworker.serve.asgi import App, AsgiScope, Message, Receive, Send, respond
from memworker.serve.refusals import CODE, Headers, Refusal
from memworker.serve.service import Service, State

PROBES = frozenset({"/healthz", "/readyz", "/health"})
# A browser cannot send a bearer token when a page is opened; these tell, and do nothing.
PAGES = frozenset({"/", "/live", "/metrics", "/openapi.json"})
ROUTES = PROBES | PAGES | {"/v1/embeddings", "/v1/models"}
# Those of text-embeddings-inference, and of Ollama.
ROUTES |= {"/embed", "/similarity", "/tokenize", "/info", "/rerank", "/v1/rerank"}
ROUTES |= {"/api/embed", "/api/embeddings", "/api/tags", "/api/version"}
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]
# What nginx calls a request whose client closed the connection.
_CLIENT_LEFT = 499
_SHOWN_BYTES = 100
_METHODS = frozenset({"GET", "HEAD"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:/@\[\]]+?)\.?(?::\d*)?")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request's head says of who asks."""

    hosts: list[bytes]
    origin: bytes | None
    authorization: bytes
    preflight: bool
    # Whether a body comes without being asked for.
    body: bool

    @classmethod
    def of(cls, scope: AsgiScope) -> Asked:
        """Read it."""
        hosts, origin, authorization, method = [], None, b"", False
        body = waits = False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                authorization = value
            elif name == b"access-control-request-method":
                method = True
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                body = True
            elif name == b"expect":
                waits = True
        preflight = method and scope["method"] == "OPTIONS"
        return cls(hosts, origin, authorization, preflight, body and not waits)


class _Body:
    """What is heard of a request, and whether more of its body is coming."""

    def __init__(self, receive: Receive, coming: bool) -> None:
        self.coming = coming
        self._receive = receive

    async def receive(self) -> Message:
        """Hear more of it."""
        message = await self._receive()
        self.coming = message["type"] == "http.request" and bool(message.get("more_body"))
        return message

    async def drop(self) -> None:
        """Hear the rest of it, for nothing; its time to arrive bounds that."""
        while self.coming:
            await self.receive()


class Gate:
    """An ASGI application around those that `find` gives for a path and a method.

    What it has none for, and who may not ask, is refused in OpenAI's shape.
    """

    def __init__(self, find: Callable[[str, str], App], service: Service) -> None:
        options = service.options
        self._find = find
        self._hosts = options.accepted_hosts
        self._allowed_hosts = frozenset(name.lower() for name in options.allowed_hosts)
        self._any_name = options.uds is not None or "*" in options.allowed_hosts
        self._origins = frozenset(origin.encode() for origin in options.cors_origins)
        self._service = service

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), _CLIENT_LEFT

        asked = Asked.of(scope)
        body = _Body(receive, asked.body)

        shared = self._cors(asked.origin)

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS, *shared]
                if self._service.state is State.DRAINING:
                    # Else the client's next request meets a connection that is being closed.
                    message["headers"].append((b"connection", b"close"))
            elif body.coming and not message.get("more_body"):
                # The answer is there; a connection that were closed now would be reset, and a
                # proxy that is still sending would lose it.
                await send({**message, "more_body": True})
                await body.drop()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            if shared and asked.preflight:
                answer: App = _preflight
            else:
                self._check(scope, asked)
                answer = self._find(scope["path"], scope["method"])
        except Refusal as refusal:
            scope[CODE] = refusal.code
            await respond(counted, *refusal.openai(), refusal.headers)
        else:
            await answer(scope, body.receive, counted)
        seconds = time.perf_counter() - started
        self._service.answered(scope, route_of(scope["path"]), status, seconds)

    def _check(self, scope: AsgiScope, asked: Asked) -> None:
        path, key = scope["path"], self._service.key
        if path in PROBES:
            return
        if len(asked.hosts) != 1:
            raise Refusal(400, "A request has one Host header.", code="host_not_allowed")
        if key is not None:
            page = path in PAGES and scope["method"] in _METHODS
            self._check_key(key, asked.authorization, page=page)
        elif not self._known(_name(asked.hosts[0])):
            name = _shown(asked.hosts[0])
            raise Refusal(
                400,
                f"This server does not go by the name {name}. It is added with --allowed-host; a"
                " server with a key takes any.",
                code="host_not_allowed",
            )
        origin = asked.origin
        if origin is not None and not self._may_ask(origin, asked.hosts[0]):
            raise Refusal(
                403,
                f"A page of {_shown(origin)} may not ask this server, which it calls"
                f" {_shown(asked.hosts[0])}. Pages of an origin are let in with --cors-origin.",
                code="origin_not_allowed",
            )

    def _may_ask(self, origin: bytes, host: bytes) -> bool:
        return bool(self._cors(origin)) or self._is_own(_netloc(origin), host)

    def _cors(self, origin: bytes | None) -> Headers:
        """Give the headers that let a page of an origin read an answer; of most, none."""
        if origin is None or not (origin in self._origins or b"*" in self._origins):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"retry-after"),
            (b"vary", b"origin"),
        ]

    def _known(self, name: str) -> bool:
        return self._any_name or name in self._hosts

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        """Tell whether a page is this server's: another port of the machine is another's.

        A proxy may ask under another name than the page has: that one was allowed.
        """
        return bool(origin) and (
            origin.lower() == host.lower() or _name(origin) in self._allowed_hosts
        )

    def _check_key(self, key: bytes, authorization: bytes, *, page: bool) -> None:
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"basic" and page:
            given = _password(given)
        elif scheme.lower() != b"bearer":
            given = b""
        if not hmac.compare_digest(given.strip(), key):
            scheme = b'Basic realm="memworker", charset="UTF-8"' if page else b"Bearer"
            raise Refusal(
                401,
                "Incorrect API key provided. Send it as: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers=[(b"www-authenticate", scheme)],
            )


async def _preflight(scope: AsgiScope, receive: Receive, send: Send) -> None:
    """Tell a browser what a page may send; the key comes with the request itself."""
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type, x-stainless-os"),
        (b"access-control-max-age", b"600"),
    ]
    for name, value in scope["headers"]:
        if name == b"access-control-request-headers":
            headers[1] = (headers[1][0], value)
    await respond(send, 204, b"", headers)


def route_of(path: str) -> str:
    """Give the route of a path, one of a few: labels of metrics must not grow with requests."""
    if path in ROUTES:
        return path
    return "/v1/models/{name}" if path.startswith("/v1/models/") else "other"


def _name(host: bytes) -> str:
    """Give a host's name without port and trailing dot, in lower case; of none, nothing."""
    found = _HOST.fullmatch(host.decode("latin-1").lower())
    return "" if found is None else found[1]


def _shown(name: bytes) -> str:
    """Give a name as a message may hold it: short, on one line."""
    return repr(name[:_SHOWN_BYTES].decode("latin-1"))


def _netloc(origin: bytes) -> bytes:
    try:
        return urlsplit(origin.decode("latin-1")).netloc.encode("latin-1")
    except ValueError:
        return b""


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
