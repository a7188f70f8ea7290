"""LanceDB's embedding registry: `table.add` and `table.search` embed through a pool.

Importing this module registers ``memworker``::

    import memworker.integrations.lancedb
    from lancedb.embeddings import get_registry

    function = get_registry().get("memworker").create(precision="int8")

LanceDB makes a new function from a table's metadata at every add and search,
so the pools live as long as this process, one for each set of options, until
`close_pools` ends them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction, register
from pydantic import ConfigDict

from memworker import DEFAULT_MODEL, EmbeddingPool
from memworker.errors import UnknownModel
from memworker.integrations.pools import PoolSource, TextKind

__all__ = ["MemworkerFunction", "close_pools", "use_pool"]

_Options = tuple[tuple[str, Any], ...]

# The process id is part of the key, since a forked child cannot use its parent's pool.
_sources: dict[tuple[int, _Options], PoolSource] = {}


@register("memworker")
class MemworkerFunction(EmbeddingFunction):
    """Embeds a text column and the queries on it.

    The options are written into the table's metadata; the pool is not. The precision
    "auto" is chosen when a function is made, and what was chosen is written down.
    """

    # LanceDB's own would take any word, and leave it out.
    model_config = ConfigDict(extra="forbid")

    name: str = DEFAULT_MODEL
    precision: str = "fp32"
    max_tokens: int | None = None
    dim: int | None = None
    workers: int | None = None

    def __init__(self, **options: Any) -> None:
        if options.get("precision") == "auto":
            # Another machine, or a later day, might choose another one for the same table.
            model, limit = options.get("name", DEFAULT_MODEL), options.get("max_tokens")
            # Its workers never start.
            pool = EmbeddingPool(model, precision="auto", max_tokens=limit)
            options["precision"] = pool.identity.precision
        super().__init__(**options)
        # A name may be that of a pool that is lent, now or later, so it is the one thing that
        # waits for the first text.
        with contextlib.suppress(UnknownModel):
            PoolSource(None, dict(_options(self)))

    def ndims(self) -> int:
        """Return how many numbers a vector has."""
        return self._pool().dim

    def compute_source_embeddings(self, texts: Any, *_: Any, **__: Any) -> list[Any]:
        """Embed a column; float32[dim] a text, None for a null."""
        return self._embed(_texts(texts), "passage")

    def compute_query_embeddings(self, query: Any, *_: Any, **__: Any) -> list[Any]:
        """Embed a query, with the model's prefix for queries if it has one."""
        return self._embed(_texts(query), "query")

    # LanceDB would try any error seven times again, waiting minutes in all; the pool has
    # retried what can be.
    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed a column; errors are raised as they are."""
        return self.compute_source_embeddings(*args, **kwargs)

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed a query; errors are raised as they are."""
        return self.compute_query_embeddings(*args, **kwargs)

    def _embed(self, texts: Sequence[str | None], kind: TextKind) -> list[Any]:
        vectors = iter(self._pool().embed([t for t in texts if t is not None], kind=kind))
        return [None if text is None else next(vectors) for text in texts]

    def _pool(self) -> EmbeddingPool:
        options = _options(self)
        source = _sources.get((os.getpid(), options))
        if source is None:
            # Atomic, so that threads share one; no lock that a forked child could find taken.
            made = PoolSource(None, dict(options))
            source = _sources.setdefault((os.getpid(), options), made)
        return source.get()


def use_pool(pool: EmbeddingPool, **options: Any) -> MemworkerFunction:
    """Embed through `pool`, which stays its giver's, wherever a function has its options.

    Returns such a function, and a table made with it needs no lent pool later:
    its options are the pool's own, unless `options` say otherwise, such as
    ``name="path/to/model"`` for a model's directory.
    """
    made = pool.identity
    known = {
        "name": made.name,
        "precision": made.precision,
        "max_tokens": made.max_tokens or None,
        "dim": made.dim,
    }
    function: MemworkerFunction = MemworkerFunction.create(**{**known, **options})
    _sources[os.getpid(), _options(function)] = PoolSource(pool, {})
    return function


def close_pools() -> None:
    """End the pools that functions made, and forget those that were given."""
    for key in [key for key in list(_sources) if key[0] == os.getpid()]:
        _sources.pop(key).close()


def _options(function: MemworkerFunction) -> _Options:
    return (
        ("model", function.name),
        ("precision", function.precision),
        ("max_tokens", function.max_tokens),
        ("dim", function.dim),
        ("workers", function.workers),
    )


def _texts(texts: Any) -> list[str | None]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        listed: list[str | None] = texts.to_pylist()
        return listed
    return list(texts)
