"""`memworker serve`: embeddings over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memworker import DEFAULT_MODEL
from memworker.cli import options
from memworker.errors import UsageError
from memworker.paths import used_path

if TYPE_CHECKING:
    from memworker.serve import Service

# Every option can be given by a variable too: MEMWORKER_PORT for --port.
CONTEXT = {"auto_envvar_prefix": "MEMWORKER"}
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 for any free one.")] = 8000,
    model: options.Model = DEFAULT_MODEL,
    precision: options.Precision = "fp32",
    min_cosine: options.MinCosine = None,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Serve /rerank too, by this cross-encoder: its folder, or its name on the hub.",
        ),
    ] = None,
    rerank_precision: Annotated[str, typer.Option(help="fp32 or int8, of --rerank.")] = "fp32",
    workers: options.Workers = None,
    memory: options.MemoryLimit = None,
    max_tokens: options.MaxTokens = None,
    dim: options.Dim = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="What clients call the model by; repeatable. Default: its own name."),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long; default: refuse them.")
    ] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="A file with the key that clients must send; else MEMWORKER_API_KEY."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients reach the server by; repeatable."),
    ] = None,
    accept_token_ids: Annotated[
        bool,
        typer.Option(
            "--accept-token-ids", help="Take token ids, which must be of the model's own tokenizer."
        ),
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages may ask, as http://localhost:3000; repeatable."),
    ] = None,
    uds: Annotated[
        Path | None, typer.Option(help="Listen on a socket of this path, and on no address.")
    ] = None,
    max_wait: Annotated[
        float,
        typer.Option(help="Seconds that a request may wait for its turn; 0: refuse at once."),
    ] = 300.0,
    max_pending_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens taken at once; beyond them requests wait. Default: some windows."
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="What is logged to stderr: critical, error, warning, info, debug.")
    ] = "warning",
    access_log: Annotated[
        Path | None, typer.Option(help="A file for a line a request; - for stderr.")
    ] = None,
    compress: Annotated[
        bool, typer.Option(help="Pack replies by gzip for clients that take them so.")
    ] = True,
    max_body: Annotated[str, typer.Option(help="The largest body that is taken.")] = "8MB",
    drain: Annotated[
        float, typer.Option(help="Seconds that a stop waits for what is in flight.")
    ] = 20.0,
) -> None:
    """Serve embeddings over HTTP, as OpenAI's and text-embeddings-inference's interfaces do.

    The first Ctrl-C or SIGTERM answers what is in flight; a second one stops at once. SIGHUP
    reads the key's file and opens the access log again. Each option can be given by an
    environment variable too, as MEMWORKER_PORT for --port.
    """
    _need_extra()
    from memworker.pool import EmbeddingPool, Reranker
    from memworker.serve import KEY_VARIABLE, ServeOptions, read_key, server

    key = read_key(api_key_file) if api_key_file else os.environ.get(KEY_VARIABLE)
    told = ServeOptions(
        host=host,
        port=port,
        names=tuple(served_model_name or ()),
        key=key or None,
        allowed_hosts=tuple(allowed_host or ()),
        truncate=truncate,
        max_body_bytes=_max_body(max_body),
        drain_s=drain,
        max_wait_s=max_wait,
        accept_token_ids=accept_token_ids,
        uds=uds,
        cors_origins=tuple(cors_origin or ()),
        access_log=access_log,
        compress=compress,
        key_file=api_key_file,
    )
    _set_level(log_level)

    tier = options.precision_of(precision, min_cosine)

    rerankers: list[Reranker] = []

    def make_pool() -> EmbeddingPool:
        if rerank:
            rerankers.append(Reranker(rerank, precision=rerank_precision, workers=workers))
            rerankers[0].pool.start()
        return EmbeddingPool(
            model,
            workers=workers,
            precision=tier,
            memory=memory,
            max_tokens=max_tokens,
            dim=dim,
            max_pending_tokens=max_pending_tokens,
        )

    # A directory's path is shown to no client.
    names = () if used_path(model, "a model").is_dir() else (model,)

    def on_ready(service: Service, address: str) -> None:
        service.reranker = rerankers[0] if rerankers else None
        _say_ready(service, address)

    code = server.run(told, make_pool, on_ready=on_ready, names=names)
    for reranker in rerankers:
        reranker.close()
    # The interpreter's own end would wait for a model that is still being fetched.
    sys.stderr.flush()
    os._exit(code)


def _set_level(name: str) -> None:
    if name.lower() not in LOG_LEVELS:
        raise UsageError(f"--log-level must be one of {', '.join(LOG_LEVELS)}, not {name!r}")
    level = name.upper()
    logging.basicConfig(level=level, format="memworker: %(message)s", stream=sys.stderr)
    # Those that the command line has given a voice of their own.
    for each in list(logging.root.manager.loggerDict):
        if each.partition(".")[0] == "memworker":
            logger = logging.getLogger(each)
            logger.propagate = not logger.handlers
            logger.setLevel(max(logger.level, logging.getLevelName(level)))


def _max_body(amount: str) -> int:
    from memworker.pool import parse_bytes

    try:
        return parse_bytes(amount)
    except UsageError:
        raise UsageError(
            f"--max-body must be an amount such as 8MB or 512KiB, not {amount!r}"
        ) from None


def _say_ready(service: Service, address: str) -> None:
    pool = service.pool
    print(
        f"memworker: serving {', '.join(service.names)} ({pool.identity.precision},"
        f" {pool.dim} dimensions, {pool.workers} workers) on {address}",
        file=sys.stderr,
        flush=True,
    )
    for note in pool.identity.notes:
        print(f"memworker: {note}", file=sys.stderr, flush=True)


def _need_extra() -> None:
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the server needs {error.name}, which is not installed. Install it with:"
            " pip install 'memworker[serve]'"
        ) from error
