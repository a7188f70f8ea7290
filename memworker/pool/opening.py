"""Whose pool it is, and waiting on an event loop for what takes long to make."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

from memworker.errors import PoolClosed, UsageError
from memworker.models import obstacles
from memworker.pool.choice import PrecisionGiven, has_choice, is_auto, tell_kept
from memworker.pool.pool import DEFAULT_MAX_TEXT_BYTES, DEFAULT_MODEL, EmbeddingPool
from memworker.values import shown

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool in use; `close`, or the end of the context, ends it if it is the user's own.

    The context does not start the workers: the first text does, or `pool.start()`.
    """

    pool: EmbeddingPool
    own: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user should be told: what of an own pool is less than it could be."""
        reduced = self.pool.plan.reduced
        return (*([reduced] if reduced else []), *self.pool.identity.notes) if self.own else ()

    def close(self) -> None:
        """End the pool, unless it was borrowed."""
        if self.own:
            self.pool.close()

    def __enter__(self) -> EmbeddingPool:
        return self.pool

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Arguments of `EmbeddingPool` that its users pass on."""

    model: Any = DEFAULT_MODEL
    precision: PrecisionGiven = "fp32"
    workers: int | None = None
    memory: int | str | None = None
    max_tokens: int | None = None
    dim: int | None = None
    storing: bool = False
    max_text_bytes: int = DEFAULT_MAX_TEXT_BYTES

    def for_table(self, model: str, precision: str) -> PoolOptions:
        """Keep to a table's own precision where "auto" would choose one; what its vectors are of.

        Raises UsageError where that precision cannot be computed here.
        """
        if not is_auto(self.precision):
            return self
        refuse_absent(self.model, model, precision)
        tell_kept(model, precision)
        return replace(self, precision=precision)

    def make(self) -> EmbeddingPool:
        """Make the pool; its workers start later. Raises what `EmbeddingPool` raises."""
        return EmbeddingPool(**{item.name: getattr(self, item.name) for item in fields(self)})


def refuse_absent(model: Any, held: str, precision: str) -> None:
    """Raise UsageError where a table's vectors, of `held`, cannot be made with `model` here."""
    if has_choice(model) and (why := obstacles(model).get(precision)):
        hint = "install what is missing (pip install 'memworker[openvino]'), or "
        raise UsageError(
            f"the table holds vectors of {held!r} in {precision}, and here there is no {precision}"
            f" of {shown(model)}: {why}. To embed for it, {hint if precision == 'bf16' else ''}give"
            " the table other vectors (memworker table reembed)"
        )


def borrowed_or_own(given: EmbeddingPool | None, options: PoolOptions) -> PoolUse:
    """Use a pool that was given, else one of the user's own, made with the options.

    Raises what `EmbeddingPool` raises when it is made.
    """
    if given is not None:
        return PoolUse(given, own=False)
    return PoolUse(options.make(), own=True)


class LatePool:
    """A pool of the user's own that is made when it is first asked for, by any thread."""

    def __init__(self, make: Callable[[], EmbeddingPool]) -> None:
        self._make = make
        self._pool: EmbeddingPool | None = None
        self._closed = False
        self._making = threading.Lock()

    @property
    def pool(self) -> EmbeddingPool:
        """The pool, made now if need be. Raises what that raises; PoolClosed after `close`."""
        if self._pool is not None:
            return self._pool
        with self._making:
            if self._closed:
                raise PoolClosed("it was closed before it had a pool; open a new one")
            if self._pool is None:
                self._pool = self._make()
            if self._closed:
                # `close` came before there was a pool.
                self._pool.close()
            return self._pool

    @property
    def made(self) -> bool:
        """Whether the pool is there."""
        return self._pool is not None

    def close(self) -> None:
        """End the pool; one that is being made ends when it is there, and is not waited for."""
        # In this order: who makes one looks for them in the other one.
        self._closed = True
        if self._pool is not None:
            self._pool.close()


class Background(Generic[T]):
    """An object being made in a background thread, while coroutines of any loop wait for it.

    The process waits for that thread at its end, unless it is a `daemon`.
    """

    def __init__(self, make: Callable[[], T], *, daemon: bool = False) -> None:
        self._made: Future[T] = Future()
        args = (make, self._made)
        threading.Thread(target=_run, args=args, name="memworker-open", daemon=daemon).start()

    @classmethod
    def done(cls, made: T) -> Background[T]:
        """Stand for what is there already."""
        opening = cls.__new__(cls)
        opening._made = Future()
        opening._made.set_result(made)
        return opening

    async def wait(self) -> T:
        """Give it once it is there; raises what its making raised."""
        if self._made.done():
            return self._made.result()
        # Shielded: giving up waiting must not cancel the making, which others wait for.
        return await asyncio.shield(asyncio.wrap_future(self._made))

    def then(self, end: Callable[[T], object]) -> None:
        """Call `end` with it, now or as soon as it is made; not at all where that fails."""
        self._made.add_done_callback(lambda made: made.exception() or end(made.result()))


def _run(make: Callable[[], T], made: Future[T]) -> None:
    try:
        made.set_result(make())
    except BaseException as error:
        made.set_exception(error)
