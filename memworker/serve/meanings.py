"""What an error's code means, in a line for whoever looks after the server."""

from __future__ import annotations

_BY_CODE = {
    "context_length_exceeded": "a text is longer than the model sees; --truncate cuts such texts",
    "empty_input": "there was nothing to embed",
    "host_not_allowed": "asked under a name that is not served; --allowed-host adds one",
    "internal_error": "a fault of the server; its log says where",
    "invalid_api_key": "no key, or a wrong one",
    "invalid_dimensions": "the model gives no vectors of that many dimensions",
    "invalid_input": "something that was asked for cannot be obeyed, or a text is too large",
    "invalid_json": "the body was no JSON",
    "invalid_encoding": "a packed body that is damaged or ends early",
    "invalid_request": "bytes that are no HTTP request",
    "invalid_token": "token ids that are not the model's",
    "invalid_truncate_prompt_tokens": "a cut to so few tokens that nothing of a text is left",
    "invalid_truncation_direction": "texts are cut on the right alone",
    "invalid_type": "a field of another type",
    "max_tokens_per_request": "too many tokens in one request; send fewer texts at once",
    "method_not_allowed": "the path is there, for another method",
    "model_not_found": "a model's name that is not served; --served-model-name adds one",
    "no_tokenizer": "the model has no tokenizer",
    "no_reranker": "the server was started without --rerank, so it orders nothing",
    "no_worker": "no worker process could be had at the moment; the log says why",
    "origin_not_allowed": "a web page of another origin asked; --cors-origin lets one",
    "pool_failed": "the worker processes ended for good; the log says why",
    "rate_limit_exceeded": "the wait would be over --max-wait; clients may come again",
    "shutting_down": "the server was ending",
    "starting": "the model was not loaded yet",
    "text_failed": "a text could not be embedded",
    "too_large": "a body, or what came with it, is over the limit",
    "token_ids_not_accepted": "token ids, which clients of OpenAI send; --accept-token-ids",
    "too_many_inputs": "too many texts in one request",
    "unknown_parameter": "a field that the route does not know",
    "unknown_url": "a path at which there is nothing",
    "unsupported_encoding": "a body packed in a way that is not taken",
}
_BY_STATUS = {
    401: "no key, or a wrong one",
    404: "there is no such thing here",
    408: "a request that did not arrive in time",
    413: "a body that is over the limit",
    429: "more was waiting than is taken; clients may come again",
    499: "the client left before it was answered",
}


def meaning(status: int, code: str | None) -> str:
    """Say what happened; where nobody has written it down, whose fault it is."""
    whose = "the server's fault" if status >= 500 else "the request was wrong"
    return _BY_CODE.get(code or "") or _BY_STATUS.get(status, whose)
