"""Tries worker counts, run sizes and precisions on the user's own texts, and keeps the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from memworker.errors import NoRows, UsageError
from memworker.models import obstacles
from memworker.paths import PathGiven
from memworker.pool import machine, peak_flops, remembered, sizing
from memworker.pool.budget import Budget, parse_bytes
from memworker.pool.choice import AUTO, Measurements, has_choice, measure
from memworker.pool.engine import Engine, resolve
from memworker.pool.pool import DEFAULT_MAX_TEXT_BYTES, DEFAULT_MODEL, EmbeddingPool

BATCH_TOKENS = (128, 320, 512, 1024)
_ROUNDS = 2
_START_SHARE = 0.3
_WINDOW_TEXTS = 128


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and how fast it was; `memory_bytes` is what it would need."""

    precision: str
    workers: int
    batch_tokens: int
    tokens_per_s: float
    texts_per_s: float
    memory_bytes: int
    kept: bool = False


def tune(
    texts: Sequence[str],
    *,
    model: PathGiven = DEFAULT_MODEL,
    precisions: Sequence[str] | None = None,
    seconds: float = 60.0,
    memory: int | str | None = None,
    report: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Measure settings for about `seconds` in all, keep the best of each precision.

    Without `precisions`, all are tried that the model has and this machine can compute.
    Pools of this model and precision start with the kept setting from then on, and where all
    were tried, the precision "auto" chooses by what was found on these texts.
    With `memory`, settings that need more are not tried. Returns every trial,
    the best of each precision marked as kept. Raises NoRows without texts.
    """
    if not texts:
        raise NoRows("there are no texts to tune with; give a file of your own")
    if seconds <= 0:
        raise UsageError(f"seconds must be above 0, not {seconds}")
    there = _there(model)
    precisions = there if precisions is None else list(dict.fromkeys(precisions))
    if not precisions:
        raise UsageError("precisions names none to try; give fp32, int8 or bf16")
    if AUTO in precisions:
        raise UsageError("tune tries precisions, auto is none; leave it out to have all tried")
    if obstacle := remembered.obstacle():
        raise UsageError(f"what is found would be lost: {obstacle}. See MEMWORKER_CACHE.")
    found = []
    for precision in precisions:
        engine = resolve(model, precision=precision)
        peak_flops.flops_per_second(machine.usable_cores(), precision, again=True)
        if not engine.tunable:
            raise UsageError(f"{engine.identity.name} has no settings to tune; name a model")
        tuner = _Tuner(engine, list(texts), seconds / len(precisions), memory, report)
        found += tuner.run()
    if len(there) > 1 and set(there) == set(precisions):
        _tell_auto(model, there, texts, found)
    return found


def _there(model: PathGiven) -> list[str]:
    """Return the precisions that the model has and this machine can compute."""
    if not has_choice(model):
        return ["fp32"]
    return [precision for precision, why in obstacles(model).items() if not why]


def _tell_auto(
    model: PathGiven, tiers: Sequence[str], texts: Sequence[str], trials: Sequence[Trial]
) -> None:
    """Leave what was found, and how near each precision is to fp32, to the precision "auto"."""
    speeds = {trial.precision: trial.tokens_per_s for trial in trials if trial.kept}
    sample = measure(model, tiers, None, texts, "", EmbeddingPool)
    if not sample.absent:
        Measurements(resolve(model).identity.fingerprint).keep_tuned(sample, speeds)


class _Tuner:
    """Run sizes first, on all cores; then worker counts, with the best run size."""

    def __init__(
        self,
        engine: Engine,
        texts: list[str],
        seconds: float,
        memory: int | str | None,
        report: Callable[[Trial], None],
    ) -> None:
        self._engine = engine
        self._texts = texts
        self._memory = memory
        self._report = report
        self._cores = machine.usable_cores()
        self._fewer = [1 << power for power in range((self._cores - 1).bit_length())]
        measurements = _ROUNDS * (len(BATCH_TOKENS) + len(self._fewer))
        self._slice_s = seconds * (1 - _START_SHARE) / measurements

    def run(self) -> list[Trial]:
        trials = self._try([Budget(self._cores, tokens) for tokens in BATCH_TOKENS])
        best = max(trials, key=lambda trial: trial.tokens_per_s)
        if self._fewer:
            trials += self._try([Budget(workers, best.batch_tokens) for workers in self._fewer])
        best = max(trials, key=lambda trial: trial.tokens_per_s)
        sizing.keep(self._engine, Budget(best.workers, best.batch_tokens))
        return [replace(trial, kept=trial is best) for trial in trials]

    def _try(self, settings: list[Budget]) -> list[Trial]:
        """Measure in rounds: a busy moment of the machine must not hit one setting alone."""
        settings = [setting for setting in settings if self._fits(setting)] or settings[-1:]
        rounds = [[self._measure(setting) for setting in settings] for _ in range(_ROUNDS)]
        best = [
            max(tries, key=lambda trial: trial.tokens_per_s) for tries in zip(*rounds, strict=True)
        ]
        for trial in best:
            self._report(trial)
        return best

    def _measure(self, setting: Budget) -> Trial:
        with EmbeddingPool(
            self._engine,
            workers=setting.workers,
            batch_tokens=setting.batch_tokens,
            memory=self._memory,
        ) as pool:
            pool.embed(self._texts[:32])
            before, started = pool.work, time.perf_counter()
            for _ in pool.stream(self._windows(started)):
                if time.perf_counter() - started > self._slice_s:
                    break
            done = pool.work
            elapsed = done.last_vector - started
            return Trial(
                precision=self._engine.identity.precision,
                workers=pool.workers,
                batch_tokens=pool.plan.costs.batch_tokens,
                tokens_per_s=(done.real_tokens - before.real_tokens) / elapsed,
                texts_per_s=(done.texts - before.texts) / elapsed,
                memory_bytes=pool.plan.memory_bytes,
            )

    def _fits(self, setting: Budget) -> bool:
        if self._memory is None:
            return True
        options = sizing.SizingOptions(
            setting.workers, setting.batch_tokens, None, DEFAULT_MAX_TEXT_BYTES
        )
        return sizing.pool_plan(self._engine, options).memory_bytes <= parse_bytes(self._memory)

    def _windows(self, started: float) -> Iterator[list[str]]:
        starts = range(0, len(self._texts), _WINDOW_TEXTS)
        for start in cycle(starts):
            yield self._texts[start : start + _WINDOW_TEXTS]
            if time.perf_counter() - started > self._slice_s:
                return
