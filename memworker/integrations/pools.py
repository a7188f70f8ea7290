"""The pool behind an adapter: one that was given and stays open, or one of the adapter's own."""

from __future__ import annotations

import asyncio
import difflib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, TypedDict

from memworker import AsyncEmbeddingPool, Auto, EmbeddingPool
from memworker.errors import PoolClosed, UsageError
from memworker.values import positive, shown

TextKind = Literal["passage", "query"]
Embeddings = list[list[float]]


class PoolArguments(TypedDict, total=False):
    """What `EmbeddingPool` takes, whose defaults hold for what is left out."""

    model: str
    precision: str | Auto
    workers: int | None
    max_tokens: int | None
    dim: int | None
    batch_tokens: int | None
    memory: int | str | None


@contextmanager
def framework(extra: str) -> Iterator[None]:
    """Import a framework's names inside; a missing one raises ImportError with the pip command."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("memworker"):
            raise
        package = error.name.partition(".")[0]
        raise ImportError(
            f"memworker.integrations.{extra.replace('-', '_')} needs the package {package!r},"
            f' which is not installed: pip install "memworker[{extra}]"'
        ) from error


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UsageError for the names that nobody knows: at once, not at the first use."""
    names = list(known)
    if unknown := [name for name in given if name not in names]:
        raise UsageError(
            f"{what} has no option {', '.join(map(repr, unknown))}"
            f"{meant(unknown[0], names)}; there are {', '.join(names)}"
        )


def refuse_other(name: str, given: object, kind: type) -> None:
    """Raise UsageError for an argument of another type; None, where nothing was given, passes."""
    if given is not None and not isinstance(given, kind):
        what = f"a {type(given).__name__}: {shown(given)}"
        raise UsageError(f"{name}= takes an object of type {kind.__name__}, not {what}")


def at_least_one(name: str, given: object) -> int:
    """Return a number of at least 1. Raises UsageError."""
    if (found := positive(name, given)) is None:
        raise UsageError(f"{name} must be a whole number of at least 1, not None")
    return found


def meant(name: str, names: Iterable[str]) -> str:
    """Say which name may have been meant, or nothing."""
    near = difflib.get_close_matches(name.lower(), list(names), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


class PoolSource:
    """Gives an adapter its pool and embeds through it.

    Options that no pool could be made of are refused at once. A given pool belongs
    to its giver: `close` leaves it open. Without one, a pool is made of the options
    at the first use, and `close`, the end of the adapter or of the program ends it.
    Copies share it; a pickled copy makes its own, so that a source with a given pool
    cannot be pickled.
    """

    def __init__(self, pool: EmbeddingPool | None, options: Mapping[str, Any]) -> None:
        refuse_unknown("an adapter's pool", options, PoolArguments.__annotations__)
        refuse_other("pool", pool, EmbeddingPool)
        if pool is not None and options:
            raise UsageError(
                f"a pool was given, and {', '.join(sorted(options))} for a new one; leave one out"
            )
        if pool is None:
            EmbeddingPool.check(**options)
        self._pool, self._borrowed = pool, pool is not None
        self._options = dict(options)
        self._closed = False
        self._mutex = threading.Lock()

    def get(self) -> EmbeddingPool:
        """Return the pool, made now if need be; its first text starts it.

        Raises PoolClosed after `close`, unless the pool was given.
        """
        with self._mutex:
            if self._closed:
                raise PoolClosed("this adapter was closed with its pool; make a new one")
            if self._pool is None:
                self._pool = EmbeddingPool(**self._options)
            return self._pool

    def embed(self, texts: Sequence[str], kind: TextKind) -> Embeddings:
        """Return one list of floats a text, in order."""
        vectors: Embeddings = self.get().embed(list(texts), kind=kind).tolist()
        return vectors

    async def embed_async(self, texts: Sequence[str], kind: TextKind) -> Embeddings:
        """Do what `embed` does, while the event loop goes on; cancelling it drops the work."""
        # Getting a model ready may take long, and starting workers takes a second or more.
        pool = self._pool or await asyncio.to_thread(self.get)
        vectors = await AsyncEmbeddingPool(pool=pool).embed(list(texts), kind=kind)
        listed: Embeddings = vectors.tolist()
        return listed

    def close(self) -> None:
        """End the pool, unless it was given."""
        if self._borrowed:
            return
        with self._mutex:
            own, self._pool, self._closed = self._pool, None, True
        if own is not None:
            own.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> PoolSource:
        return self

    def __reduce__(self) -> tuple[type[PoolSource], tuple[None, dict[str, Any]]] | NoReturn:
        if self._borrowed:
            raise TypeError(
                "an adapter with a given pool cannot be pickled: its workers belong to this"
                " process; give the adapter model options instead of a pool"
            )
        return PoolSource, (None, self._options)
