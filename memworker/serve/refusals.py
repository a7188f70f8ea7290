"""Refusals: one exception, rendered in OpenAI's shape or in text-embeddings-inference's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from memworker.errors import (
    MemworkerError,
    PoolBusy,
    PoolClosed,
    PoolUnavailable,
    TextFailed,
    TextTooLarge,
    UsageError,
)
from memworker.serve.bodies import EmbedErrorReply, ErrorFacts, ErrorReply

Headers = list[tuple[bytes, bytes]]
# Where a request's scope keeps the code of its refusal, for the metrics.
CODE = "memworker.code"

_TYPES = {
    401: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
# What text-embeddings-inference answers instead, by code; else it keeps the status.
_EMBED_STATUS = {
    "context_length_exceeded": 413,
    "too_many_inputs": 413,
    "max_tokens_per_request": 413,
    "text_failed": 424,
}
_EMBED_TYPES = {400: "Validation", 413: "Validation", 429: "Overloaded", 503: "Unhealthy"}


class Refusal(Exception):
    """A request that is answered with an error. Its message goes to that client alone."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or []

    def openai(self) -> tuple[int, bytes]:
        """Give status and body as OpenAI does."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        facts = ErrorFacts(self.message, kind, self.param, self.code)
        return self.status, msgspec.json.encode(ErrorReply(facts))

    def embed(self) -> tuple[int, bytes]:
        """Give status and body as text-embeddings-inference does."""
        status = _EMBED_STATUS.get(self.code or "", self.status)
        kind = "Empty" if self.code == "empty_input" else _EMBED_TYPES.get(status, "Backend")
        return status, msgspec.json.encode(EmbedErrorReply(self.message, kind))


def retry_after(seconds: float) -> Headers:
    """Give the header that says when to come again, in whole seconds."""
    return [(b"retry-after", b"%d" % max(1, math.ceil(seconds)))]


def starting_error() -> Refusal:
    """Refuse because the model is not loaded yet."""
    return Refusal(503, "The model is still being loaded.", code="starting", headers=retry_after(2))


def draining_error() -> Refusal:
    """Refuse because the server is shutting down."""
    return Refusal(
        503, "The server is shutting down.", code="shutting_down", headers=retry_after(2)
    )


def no_worker_error(retry_after_s: float) -> Refusal:
    """Refuse because no worker process can be had at the moment."""
    return Refusal(
        503,
        "No worker process can be had at the moment; the server's log says why. Try again later.",
        code="no_worker",
        headers=retry_after(retry_after_s),
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn the pool's errors into refusals."""
    try:
        yield
    except MemworkerError as error:
        raise refused(error) from error


def refused(error: MemworkerError) -> Refusal:
    """Give the refusal that an error of the pool's is to a client."""
    match error:
        case PoolBusy():
            return Refusal(
                429,
                f"The server is busy, and what waits before this request takes about"
                f" {error.retry_after_s:.2g} s. Nothing of it was begun; try again then. The server"
                " lets requests wait as long as its --max-wait says, and takes as much at once as"
                " --max-pending-tokens.",
                code="rate_limit_exceeded",
                headers=retry_after(error.retry_after_s),
            )
        case TextTooLarge() | TextFailed() | UsageError():
            return Refusal(400, str(error), param="input", code="invalid_input")
        case PoolUnavailable():
            return no_worker_error(error.retry_after_s)
        case PoolClosed():
            return draining_error()
        case _:
            return Refusal(500, str(error), code="pool_failed")
