"""`create_app`: the routes joined."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Route as Path
from starlette.types import ASGIApp

from memworker.serve import routes
from memworker.serve.refusals import Refusal
from memworker.serve.service import Service


def create_app(service: Service) -> ASGIApp:
    """Make the ASGI application of a service."""

    def openai(answer: routes._Answer) -> routes.Route:
        return routes.Route(service, answer, Refusal.openai)

    return Starlette(
        routes=[
            Path("/v1/embeddings", openai(routes.embeddings), methods=["POST"]),
            Path("/v1/models", openai(routes.models), methods=["GET"]),
            Path("/v1/models/{name:path}", openai(routes.model), methods=["GET"]),
            Path("/healthz", openai(routes.healthz), methods=["GET"]),
            Path("/readyz", openai(routes.readyz), methods=["GET"]),
        ]
    )
