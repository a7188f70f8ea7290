"""From a model and the caller's options to the pool's measures: workers, costs, slots."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from memworker.errors import UsageError
from memworker.pool import machine, plan, remembered
from memworker.pool.arena import SlotShape
from memworker.pool.budget import Budget, Footprint, fit, parse_bytes
from memworker.pool.engine import Engine
from memworker.pool.worker import Loader
from memworker.values import positive

_log = logging.getLogger(__name__)

_SLOT_VECTOR_BYTES = 4 << 20
_SLOT_ROWS = 1024
_URGENT_ROWS = 64
_URGENT_TEXT_BYTES = 1 << 18
_WINDOW_SHARD_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True)
class SizingOptions:
    """What the caller asked for; None leaves it to measurements.

    `storing`: this process also puts the rows into a table, which takes memory.
    """

    workers: int | None
    batch_tokens: int | None
    memory: int | str | None
    max_text_bytes: int
    max_pending_tokens: int | None = None
    storing: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "batch_tokens", "max_text_bytes", "max_pending_tokens"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.memory is not None:
            parse_bytes(self.memory)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The measures that a pool is made to.

    `memory_bytes` is an estimate of what parent and workers hold together. `reduced` says what
    is less than was wanted, and for which bound; None where nothing is.
    """

    loader: Loader
    costs: plan.Costs
    shapes: tuple[SlotShape, ...]
    workers: int
    windows_in_flight: int
    memory_bytes: int
    pending_tokens: int
    reduced: str | None = None


def pool_plan(engine: Engine, options: SizingOptions) -> PoolPlan:
    """Choose what was asked for, else what was tuned here, else what is usual.

    Raises UsageError when the memory allowed is too little for one worker.
    """
    costs = engine.costs
    usual = recall(engine) or Budget(machine.usable_cores(), costs.batch_tokens)
    wanted = Budget(options.workers or usual.workers, options.batch_tokens or usual.batch_tokens)
    footprint = engine.footprint
    shapes = _slot_shapes(footprint.dim, options.max_text_bytes)
    region = sum(shape.layout()[1] for shape in shapes)
    footprint = replace(
        footprint,
        region_bytes=region,
        storing=options.storing,
        window_tokens=plan.SHARDS_PER_WINDOW * costs.shard_tokens,
    )
    budget, reduced = _within_bounds(wanted, options, footprint)
    costs = replace(costs, batch_tokens=budget.batch_tokens)
    needed = footprint.estimate(budget)
    # Where the caller says how many, longest texts may be none of theirs.
    least = replace(footprint, longest_bytes=0).estimate(budget)
    _refuse_more_than_there_is(least, budget.workers)
    windows = budget.windows_in_flight
    pending = options.max_pending_tokens or windows * _window_tokens(costs, budget.workers)
    loader = engine.loader(costs)
    return PoolPlan(loader, costs, shapes, budget.workers, windows, needed, pending, reduced)


def _window_tokens(costs: plan.Costs, workers: int) -> int:
    """Estimate the tokens of a full window; what a stream has in flight must find room."""
    return plan.SHARDS_PER_WINDOW * workers * min(costs.shard_tokens, _WINDOW_SHARD_TOKENS)


def _within_bounds(
    wanted: Budget, options: SizingOptions, footprint: Footprint
) -> tuple[Budget, str | None]:
    """Give what fits, and what had to be less for that; how many workers is the caller's to say."""
    if options.memory is not None:
        allowed, whose = parse_bytes(options.memory), "memory= (--memory) allows"
    elif options.workers is None:
        allowed, whose = machine.memory_bytes(), "there is of memory (--memory sets another bound)"
    else:
        return wanted, None
    budget = fit(allowed, wanted, footprint)
    if budget == wanted:
        return wanted, None
    reduced = (
        f"to stay within the {allowed >> 20:,} MiB that {whose}, where {wanted.workers} workers"
        f" would need about {footprint.estimate(wanted) >> 20:,}: {budget.than(wanted)}"
    )
    _log.warning("%s", reduced)
    return budget, reduced


def _refuse_more_than_there_is(needed: int, workers: int) -> None:
    there = machine.memory_bytes()
    if needed > there:
        raise UsageError(
            f"{workers} workers with this model need about {needed >> 20:,} MiB of memory; this"
            f" machine has {there >> 20:,} MiB. Use fewer workers, or say how much with memory="
            " (--memory)."
        )


def recall(engine: Engine) -> Budget | None:
    """Give what tuning chose for a model on this machine, if it has been tuned here."""
    known = remembered.recall(_name(engine))
    try:
        return Budget(**known) if known else None
    except TypeError:
        return None


def keep(engine: Engine, best: Budget) -> None:
    """Remember a choice of workers and session runs for the pools to come."""
    value = {"workers": best.workers, "batch_tokens": best.batch_tokens}
    remembered.keep(_name(engine), value)


def _name(engine: Engine) -> str:
    made = engine.identity
    return f"tuned {made.name} {made.precision} on {machine.usable_cores()} cores"


def _slot_shapes(dim: int, max_text_bytes: int) -> tuple[SlotShape, ...]:
    rows = max(1, min(_SLOT_ROWS, _SLOT_VECTOR_BYTES // (4 * dim)))
    bulk = SlotShape(rows, dim, max(max_text_bytes, 2 << 20))
    return bulk, bulk, SlotShape(_URGENT_ROWS, dim, _URGENT_TEXT_BYTES)
