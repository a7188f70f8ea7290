"""`create_app`: the routes joined, behind the gate."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from memworker.serve.gate import Gate
from memworker.serve.refusals import CODE, Refusal
from memworker.serve.routes import answers
from memworker.serve.service import Service

_WORDS = {
    404: ("unknown_url", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not take that method."),
}


def create_app(service: Service) -> ASGIApp:
    """Make the ASGI application of a service; it serves once the service has a pool."""
    app = Starlette(
        routes=[
            Route(path, endpoint, methods=[method])
            for path, (method, endpoint) in answers(service).items()
        ],
        exception_handlers={HTTPException: _refused},
    )
    # A redirect would be built from what the client calls itself.
    app.router.redirect_slashes = False
    return Gate(app, service.options, service.metrics, service.live)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message = _WORDS.get(error.status_code, ("refused", str(error.detail)))
    request.scope[CODE] = code
    status, body = Refusal(error.status_code, message, code=code).openai()
    return Response(body, status, headers=error.headers, media_type="application/json")
