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

import os
import threading
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction, register

from memworker import EmbeddingPool
from memworker.integrations.pools import DEFAULT_MODEL, Kind

__all__ = ["MemworkerFunction", "close_pools", "use_pool"]

_Options = tuple[tuple[str, Any], ...]
_Key = tuple[int, _Options]


class _SharedPools:
    """The pools of this process's functions, by their options."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._made: dict[_Key, EmbeddingPool] = {}
        self._given: dict[_Key, EmbeddingPool] = {}

    def get(self, options: _Options) -> EmbeddingPool:
        # The process id, since a forked child cannot use its parent's pool.
        key = (os.getpid(), options)
        with self._mutex:
            pool = self._given.get(key) or self._made.get(key)
            if pool is None:
                pool = self._made[key] = EmbeddingPool(**dict(options))
            return pool

    def use(self, pool: EmbeddingPool, options: _Options) -> None:
        with self._mutex:
            self._given[(os.getpid(), options)] = pool

    def close(self) -> None:
        with self._mutex:
            mine = [key for key in self._made if key[0] == os.getpid()]
            made = [self._made.pop(key) for key in mine]
            self._given.clear()
        for pool in made:
            pool.close()


_pools = _SharedPools()


@register("memworker")
class MemworkerFunction(EmbeddingFunction):
    """Embeds a text column and the queries on it.

    The options are written into the table's metadata; the pool is not.
    """

    name: str = DEFAULT_MODEL
    precision: str = "fp32"
    max_tokens: int | None = None
    workers: int | None = None

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

    def _embed(self, texts: Sequence[str | None], kind: Kind) -> list[Any]:
        vectors = iter(self._pool().embed([t for t in texts if t is not None], kind=kind))
        return [None if text is None else next(vectors) for text in texts]

    def _pool(self) -> EmbeddingPool:
        return _pools.get(_options(self))


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
    }
    function: MemworkerFunction = MemworkerFunction.create(**{**known, **options})
    _pools.use(pool, _options(function))
    return function


def close_pools() -> None:
    """End the pools that functions made, and forget those that were given."""
    _pools.close()


def _options(function: MemworkerFunction) -> _Options:
    return (
        ("model", function.name),
        ("precision", function.precision),
        ("max_tokens", function.max_tokens),
        ("workers", function.workers),
    )


def _texts(texts: Any) -> list[str | None]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        listed: list[str | None] = texts.to_pylist()
        return listed
    return list(texts)
