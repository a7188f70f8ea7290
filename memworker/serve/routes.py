"""The routes: what each answers. An answer is bytes; what cannot be answered is refused."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable

import msgspec

from memworker.serve import inputs, metrics, ollama, openapi, page, replies, rerank
from memworker.serve.asgi import (
    JSON,
    AsgiScope,
    ClientGone,
    Receive,
    Send,
    disconnected,
    read_body,
    respond,
)
from memworker.serve.bodies import EmbedRequest, ModelList, kind_of
from memworker.serve.packing import packed
from memworker.serve.refusals import CODE, Headers, Refusal
from memworker.serve.service import Service, State

Handler = Callable[[Service, AsgiScope, Receive], Awaitable[bytes]]
# Where a request's scope says that its reply is not to be packed.
DENSE = "memworker.dense"
_log = logging.getLogger("memworker.serve")


class Route:
    """An ASGI application of one answer, and of one shape that its refusals have."""

    def __init__(
        self,
        service: Service,
        answer: Handler,
        *,
        shape: Callable[[Refusal], tuple[int, bytes]] = Refusal.openai,
        content_type: bytes = JSON,
        headers: Headers | None = None,
    ) -> None:
        self._service = service
        self._answer = answer
        self._shape = shape
        self._content_type = content_type
        self._headers = headers

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        try:
            body = await self._answer(self._service, scope, receive)
        except ClientGone:
            return
        except Refusal as refusal:
            await self._refuse(refusal, scope, send)
        except Exception as error:
            _log_without_values(error)
            message = "The server failed on this request; its log says where."
            await self._refuse(Refusal(500, message, code="internal_error"), scope, send)
        else:
            headers = list(self._headers or ())
            if self._service.options.compress and DENSE not in scope:
                body, said = await packed(body, scope["headers"])
                headers += said
            await respond(send, 200, body, headers, content_type=self._content_type)

    async def _refuse(self, refusal: Refusal, scope: AsgiScope, send: Send) -> None:
        scope[CODE] = refusal.code
        status, body = self._shape(refusal)
        await respond(send, status, body, refusal.headers)


async def embeddings(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /v1/embeddings`."""
    request = inputs.embeddings_request(await _body(service, scope, receive))
    service.check_model(request.model)
    given = inputs.of_embeddings(request, service.options, service.max_tokens)
    dim = service.dimensions(request.dimensions)
    base64 = request.encoding_format == "base64"
    if base64:
        # Packing would take longer than a quarter less is worth.
        scope[DENSE] = True
    embedded = await service.embed(given, lambda: disconnected(receive))
    return await replies.embeddings_reply(embedded, request.model, base64=base64, dim=dim)


async def root(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /`: as `/embed`, or as `/similarity` where that is what was sent.

    Hugging Face's client sends there whatever task it has.
    """
    body = await _body(service, scope, receive)
    try:
        request = inputs.embed_request(body)
    except Refusal:
        if not inputs.is_similarity(body):
            raise
        return await _similar(service, body, receive)
    return await _embed(service, request, receive)


async def embed(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /embed`."""
    request = inputs.embed_request(await _body(service, scope, receive))
    return await _embed(service, request, receive)


async def _embed(service: Service, request: EmbedRequest, receive: Receive) -> bytes:
    given = inputs.of_embed(request, service.options)
    dim = service.dimensions(request.dimensions)
    embedded = await service.embed(given, lambda: disconnected(receive))
    # Told nothing or true, vectors of length one; false leaves what the model gives as it is.
    normalize = request.normalize is not False and not service.normalizes
    return await replies.embed_reply(embedded, normalize=normalize, dim=dim)


async def similarity(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /similarity`."""
    return await _similar(service, await _body(service, scope, receive), receive)


async def _similar(service: Service, body: bytes, receive: Receive) -> bytes:
    request = inputs.similarity_request(body)
    given = inputs.of_similarity(request, service.options)
    return replies.similarity_reply(await service.embed(given, lambda: disconnected(receive)))


async def tokenize(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `POST /tokenize`."""
    request = inputs.tokenize_request(await _body(service, scope, receive))
    texts = inputs.of_tokenize(request, service.options)
    return msgspec.json.encode(
        await service.tokens(texts, kind_of(request.prompt_name), request.add_special_tokens)
    )


async def info(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /info`."""
    return msgspec.json.encode(service.info())


async def models(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /v1/models`."""
    return msgspec.json.encode(ModelList(service.models()))


async def model(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /v1/models/{name}`."""
    name = scope["path"].removeprefix("/v1/models/")
    service.check_model(name)
    return msgspec.json.encode(next(known for known in service.models() if known.id == name))


async def healthz(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /healthz`: the process lives."""
    return b'{"status":"ok"}'


async def readyz(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /readyz`: requests are taken and there are workers for them, or 503."""
    condition = service.condition
    if condition == State.READY.value:
        return b'{"status":"ready"}'
    if condition == "no_worker":
        raise Refusal(503, "No worker process is ready.", code=condition)
    raise Refusal(503, f"The server is {condition}.", code=condition)


async def metrics_page(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /metrics`."""
    return service.metrics.page()


async def live(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /live`: what the page shows."""
    return msgspec.json.encode(service.view())


async def live_page(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /`."""
    return page.html()


async def description(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    """Answer `GET /openapi.json`."""
    return openapi.document(service.options)


def answers(service: Service) -> dict[str, dict[str, Route]]:
    """Give every path's methods; a path that ends in `/` stands for all below it."""
    text, tei = metrics.CONTENT_TYPE, Refusal.embed
    front = Route(service, live_page, content_type=page.CONTENT_TYPE, headers=page.headers())
    return {
        "/v1/embeddings": {"POST": Route(service, embeddings)},
        "/v1/models": {"GET": Route(service, models)},
        "/v1/models/": {"GET": Route(service, model)},
        "/embed": {"POST": Route(service, embed, shape=tei)},
        "/similarity": {"POST": Route(service, similarity, shape=tei)},
        "/tokenize": {"POST": Route(service, tokenize, shape=tei)},
        "/api/embed": {"POST": Route(service, ollama.embed, shape=ollama.refused)},
        "/api/embeddings": {"POST": Route(service, ollama.embeddings, shape=ollama.refused)},
        "/api/tags": {"GET": Route(service, ollama.tags, shape=ollama.refused)},
        "/api/version": {"GET": Route(service, ollama.version, shape=ollama.refused)},
        "/rerank": {"POST": Route(service, rerank.rerank, shape=tei)},
        "/v1/rerank": {"POST": Route(service, rerank.rerank)},
        "/info": {"GET": Route(service, info, shape=tei)},
        "/health": {"GET": Route(service, readyz, shape=tei)},
        "/healthz": {"GET": Route(service, healthz)},
        "/readyz": {"GET": Route(service, readyz)},
        "/metrics": {"GET": Route(service, metrics_page, content_type=text)},
        "/live": {"GET": Route(service, live)},
        "/openapi.json": {"GET": Route(service, description)},
        "/": {"GET": front, "POST": Route(service, root, shape=tei)},
    }


async def _body(service: Service, scope: AsgiScope, receive: Receive) -> bytes:
    inputs.refuse_query(scope["query_string"])
    return await read_body(scope, receive, service.options.max_body_bytes)


def _log_without_values(error: Exception) -> None:
    """Say what failed and where; an exception's own message may hold a text."""
    places = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{place.name}:{place.lineno}" for place in reversed(places[-4:]))
    _log.error("%s in %s", type(error).__name__, where)
