"""`create_app`: the routes joined, behind the gate."""

from __future__ import annotations

from memworker.serve.asgi import App, AsgiScope, Receive, Send, respond
from memworker.serve.gate import Gate
from memworker.serve.refusals import CODE, Refusal
from memworker.serve.routes import Route, answers
from memworker.serve.service import Service

_MODELS = "/v1/models/"


def create_app(service: Service) -> App:
    """Make the ASGI application of a service; it serves once the service has a pool."""
    return Gate(Router(answers(service)), service)


class Router:
    """Finds the route of a path and method; what has none is refused in OpenAI's shape."""

    def __init__(self, routes: dict[str, tuple[str, Route]]) -> None:
        self._routes = routes

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        try:
            route = self._find(scope["path"], scope["method"])
        except Refusal as refusal:
            scope[CODE] = refusal.code
            await respond(send, *refusal.openai(), refusal.headers)
        else:
            await route(scope, receive, send)

    def _find(self, path: str, method: str) -> Route:
        known = self._routes.get(_MODELS if path.startswith(_MODELS) else path)
        if known is None:
            raise Refusal(404, "There is nothing at this path.", code="unknown_url")
        allowed, route = known
        if method == allowed or (method == "HEAD" and allowed == "GET"):
            return route
        allow = b"GET, HEAD" if allowed == "GET" else allowed.encode()
        raise Refusal(
            405,
            "This path does not take that method.",
            code="method_not_allowed",
            headers=[(b"allow", allow)],
        )
