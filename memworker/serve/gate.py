"""What every request passes first: who may ask, under which name, and what is counted.

A name that the server does not go by is refused, so that a web page cannot reach
it by having its own name point here (DNS rebinding); so is a page of another
origin. The probes of an orchestrator come by address and tell nothing: they pass.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from memworker.serve.asgi import App, AsgiScope, Message, Receive, Send, respond
from memworker.serve.refusals import CODE, Refusal
from memworker.serve.service import Service, State

PROBES = frozenset({"/healthz", "/readyz"})
# A browser cannot send a bearer token when a page is opened; these tell, and do nothing.
PAGES = frozenset({"/", "/live", "/metrics", "/openapi.json"})
ROUTES = PROBES | PAGES | {"/v1/embeddings", "/v1/models", "/embed", "/metrics", "/openapi.json"}
ROUTES |= {"/api/embed", "/api/embeddings", "/api/tags", "/api/version"}
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]
# What nginx calls a request whose client closed the connection.
_CLIENT_LEFT = 499
_METHODS = frozenset({"GET", "HEAD"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:/@\[\]]+?)\.?(?::\d*)?")


class Gate:
    """An ASGI application around those that `find` gives for a path and a method.

    What it has none for, and who may not ask, is refused in OpenAI's shape.
    """

    def __init__(self, find: Callable[[str, str], App], service: Service) -> None:
        options = service.options
        self._find = find
        self._hosts = options.accepted_hosts
        self._allowed_hosts = frozenset(name.lower() for name in options.allowed_hosts)
        self._key = None if options.key is None else options.key.encode()
        self._service = service

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), _CLIENT_LEFT

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
                if self._service.state is State.DRAINING:
                    # Else the client's next request meets a connection that is being closed.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            self._check(scope)
            answer = self._find(scope["path"], scope["method"])
        except Refusal as refusal:
            scope[CODE] = refusal.code
            await respond(counted, *refusal.openai(), refusal.headers)
        else:
            await answer(scope, receive, counted)
        seconds = time.perf_counter() - started
        route = route_of(scope["path"])
        self._service.live.answered(route, status, seconds, scope.get(CODE))

    def _check(self, scope: AsgiScope) -> None:
        path = scope["path"]
        if path in PROBES:
            return
        hosts, origin, authorization = [], None, b""
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origin = value
            elif name == b"authorization":
                authorization = value
        if len(hosts) != 1 or not self._known(_name(hosts[0])):
            raise Refusal(
                400,
                "This server does not go by that name. Names are added with --allowed-host.",
                code="host_not_allowed",
            )
        if origin is not None and not self._is_own(_netloc(origin), hosts[0]):
            raise Refusal(403, "Pages of other origins may not ask.", code="origin_not_allowed")
        if self._key is not None:
            self._check_key(authorization, page=path in PAGES and scope["method"] in _METHODS)

    def _known(self, name: str) -> bool:
        return name in self._hosts or "*" in self._hosts

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        """Tell whether a page is this server's: another port of the machine is another's.

        A proxy may ask under another name than the page has: that one was allowed.
        """
        return bool(origin) and (
            origin.lower() == host.lower() or _name(origin) in self._allowed_hosts
        )

    def _check_key(self, authorization: bytes, *, page: bool) -> None:
        assert self._key is not None
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() == b"basic" and page:
            given = _password(given)
        elif scheme.lower() != b"bearer":
            given = b""
        if not hmac.compare_digest(given.strip(), self._key):
            scheme = b'Basic realm="memworker", charset="UTF-8"' if page else b"Bearer"
            raise Refusal(
                401,
                "Incorrect API key provided. Send it as: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers=[(b"www-authenticate", scheme)],
            )


def route_of(path: str) -> str:
    """Give the route of a path, one of a few: labels of metrics must not grow with requests."""
    if path in ROUTES:
        return path
    return "/v1/models/{name}" if path.startswith("/v1/models/") else "other"


def _name(host: bytes) -> str:
    """Give a host's name without port and trailing dot, in lower case; of none, nothing."""
    found = _HOST.fullmatch(host.decode("latin-1").lower())
    return "" if found is None else found[1]


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
