"""From a model and the caller's options to the pool's measures: workers, costs, slots."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from memworker.errors import UsageError
from memworker.models.spec import ReadyModel
from memworker.pool import machine, plan, remembered
from memworker.pool.arena import SlotShape
from memworker.pool.budget import Budget, Footprint, fit, parse_bytes
from memworker.pool.encoder import OnnxLoader
from memworker.pool.worker import Loader

_log = logging.getLogger(__name__)

_SLOT_VECTOR_BYTES = 4 << 20
_SLOT_ROWS = 1024
_URGENT_ROWS = 64
_URGENT_TEXT_BYTES = 1 << 18
_MINILM_FLOPS = 21.2e6
_SHARD_TOKENS = 4096
_STATIC_SHARD_TOKENS = 1 << 16
_STATIC_BATCH_TOKENS = 1 << 12
_STATIC_RUN_TOKENS = 100.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller asked for; None leaves it to measurements."""

    workers: int | None
    batch_tokens: int | None
    memory: int | str | None
    max_text_bytes: int
    max_pending_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "batch_tokens", "max_text_bytes", "max_pending_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.memory is not None:
            parse_bytes(self.memory)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The measures that a pool is made to."""

    loader: Loader
    costs: plan.Costs
    shapes: tuple[SlotShape, ...]
    workers: int
    windows_in_flight: int
    memory_bytes: int
    pending_tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What tuning found best for a model on this machine."""

    workers: int
    batch_tokens: int


def sizes(resolved: ReadyModel | Loader, wishes: Wishes) -> Sizes:
    """Choose what was asked for, else what was tuned here, else what is usual.

    Raises UsageError when the memory allowed is too little for one worker.
    """
    costs = _costs(resolved)
    tuned = recall(resolved)
    usual = Choice(machine.usable_cores(), costs.batch_tokens) if tuned is None else tuned
    budget = Budget(wishes.workers or usual.workers, wishes.batch_tokens or usual.batch_tokens)
    shapes = _slot_shapes(_dim(resolved), wishes.max_text_bytes)
    footprint = _footprint(resolved, shapes)
    if wishes.memory is not None:
        budget = fit(parse_bytes(wishes.memory), budget, footprint)
    elif wishes.workers is None:
        budget = _within_what_there_is(budget, footprint)
    costs = replace(costs, batch_tokens=budget.batch_tokens)
    loader = OnnxLoader(resolved, costs) if isinstance(resolved, ReadyModel) else resolved
    needed = footprint.estimate(budget)
    _refuse_more_than_there_is(needed, budget.workers)
    windows = budget.windows_in_flight
    pending = wishes.max_pending_tokens or windows * _window_tokens(costs, budget.workers)
    return Sizes(loader, costs, shapes, budget.workers, windows, needed, pending)


def _window_tokens(costs: plan.Costs, workers: int) -> int:
    """Estimate the tokens of a full window; what a stream has in flight must find room."""
    return plan.SHARDS_PER_WINDOW * workers * min(costs.shard_tokens, _STATIC_SHARD_TOKENS)


def _within_what_there_is(wanted: Budget, footprint: Footprint) -> Budget:
    """Give fewer and smaller workers where the machine, or the cgroup, has no memory for all."""
    there = machine.memory_bytes()
    if footprint.estimate(wanted) <= there:
        return wanted
    budget = fit(there, wanted, footprint)
    _log.warning(
        "%d workers would need about %d MiB of memory, and there are %d MiB: going on with %d of"
        " them, %d tokens a run and %d windows under way; memory= (--memory) sets another bound",
        wanted.workers,
        footprint.estimate(wanted) >> 20,
        there >> 20,
        budget.workers,
        budget.batch_tokens,
        budget.windows_in_flight,
    )
    return budget


def _refuse_more_than_there_is(needed: int, workers: int) -> None:
    there = machine.memory_bytes()
    if needed > there:
        raise UsageError(
            f"{workers} workers with this model need about {needed >> 20:,} MiB of memory; this"
            f" machine has {there >> 20:,} MiB. Use fewer workers, or say how much with memory="
            " (--memory)."
        )


def recall(resolved: ReadyModel | Loader) -> Choice | None:
    """Give what tuning chose for a model on this machine, if it has been tuned here."""
    known = remembered.recall(_name(resolved))
    try:
        return Choice(**known) if known else None
    except TypeError:
        return None


def keep(resolved: ReadyModel | Loader, choice: Choice) -> None:
    """Remember a choice for the pools to come."""
    value = {"workers": choice.workers, "batch_tokens": choice.batch_tokens}
    remembered.keep(_name(resolved), value)


def _name(resolved: ReadyModel | Loader) -> str:
    cores = machine.usable_cores()
    if isinstance(resolved, ReadyModel):
        return f"tuned {resolved.spec.name} {resolved.precision} on {cores} cores"
    return f"tuned {type(resolved).__qualname__} on {cores} cores"


def _dim(resolved: ReadyModel | Loader) -> int:
    return resolved.spec.dim if isinstance(resolved, ReadyModel) else resolved.dim


def _costs(resolved: ReadyModel | Loader) -> plan.Costs:
    """Say what a text costs under a model; from measurements, see docs/PERFORMANCE.md."""
    if not isinstance(resolved, ReadyModel):
        # Nothing is known of a foreign encoder: full slots, and windows as they come.
        return plan.Costs(max_tokens=1 << 30, shard_tokens=1 << 30)
    if resolved.spec.static:
        # Tokenising is the work, a text at a time: large runs cost nothing but padding.
        return plan.Costs(
            max_tokens=resolved.max_tokens,
            shard_tokens=_STATIC_SHARD_TOKENS,
            batch_tokens=_STATIC_BATCH_TOKENS,
            run_tokens=_STATIC_RUN_TOKENS,
        )
    scale = _MINILM_FLOPS / (resolved.flops_per_token or _MINILM_FLOPS)
    shard_tokens = min(max(int(_SHARD_TOKENS * scale), resolved.max_tokens), _SHARD_TOKENS)
    return plan.Costs(max_tokens=resolved.max_tokens, shard_tokens=shard_tokens)


def _slot_shapes(dim: int, max_text_bytes: int) -> tuple[SlotShape, ...]:
    rows = max(1, min(_SLOT_ROWS, _SLOT_VECTOR_BYTES // (4 * dim)))
    bulk = SlotShape(rows, dim, max(max_text_bytes, 2 << 20))
    return bulk, bulk, SlotShape(_URGENT_ROWS, dim, _URGENT_TEXT_BYTES)


def _footprint(resolved: ReadyModel | Loader, shapes: tuple[SlotShape, ...]) -> Footprint:
    weights = 0
    if isinstance(resolved, ReadyModel):
        folder = resolved.graph.parent
        weights = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    region = sum(shape.layout()[1] for shape in shapes)
    return Footprint(_dim(resolved), weights, region)
