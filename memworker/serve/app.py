"""`create_app`: the routes joined, behind the gate."""

from __future__ import annotations

from memworker.serve.asgi import App
from memworker.serve.gate import Gate
from memworker.serve.refusals import Refusal
from memworker.serve.routes import Route, answers
from memworker.serve.service import Service

_MODELS = "/v1/models/"


def create_app(service: Service) -> App:
    """Make the ASGI application of a service; it serves once the service has a pool."""
    routes = answers(service)
    return Gate(lambda path, method: _found(routes, path, method), service)


def _found(routes: dict[str, dict[str, Route]], path: str, method: str) -> Route:
    """Find the route of a path and method. Raises Refusal where there is none."""
    known = routes.get(_MODELS if path.startswith(_MODELS) else path)
    if known is None:
        raise Refusal(404, "There is nothing at this path.", code="unknown_url")
    route = known.get("GET" if method == "HEAD" else method)
    if route is not None:
        return route
    allowed = ", ".join("GET, HEAD" if taken == "GET" else taken for taken in known)
    raise Refusal(
        405,
        f"This path does not take that method, but {allowed}.",
        code="method_not_allowed",
        headers=[(b"allow", allowed.encode())],
    )
