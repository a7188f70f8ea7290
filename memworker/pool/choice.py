"""`precision="auto"`: the fastest precision that comes near enough to fp32 on this machine.

Each precision that there is embeds the same texts once, in a worker of its own; what came of
it is remembered for this processor, this model and these engines, so that the next pool
knows at once. `tune` leaves its measurements here too, taken on the user's own texts: they
go before those on the shipped ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import psutil

from memworker.errors import MemworkerError, ModelUnsupported, UsageError
from memworker.models import Precision, measuring_texts, obstacles, ready_model
from memworker.paths import PathGiven
from memworker.pool import remembered
from memworker.values import shown

if TYPE_CHECKING:
    from memworker.pool.pool import EmbeddingPool

_log = logging.getLogger(__name__)

AUTO = "auto"
DEFAULT_MIN_COSINE = 0.998
_MOST_TEXTS = 512
_ROUNDS = 2
# Measurements of one model that are remembered, the latest ones.
_SAMPLES = 8
_SHIPPED = "the shipped texts"
_OWN = "texts of your own"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Auto:
    """Let the precision be chosen: the fastest whose mean cosine to fp32 is `min_cosine` or more.

    It is measured on `texts`, 512 of them at most; without any, on what `tune` was given for
    this model, else on the shipped texts. Raises UsageError where `min_cosine` is none.
    """

    min_cosine: float = DEFAULT_MIN_COSINE
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = self.min_cosine
        if isinstance(given, bool) or not isinstance(given, int | float) or not -1 <= given <= 1:
            raise UsageError(f"min_cosine must be a number from -1 to 1, not {shown(given)}")
        if isinstance(self.texts, str):
            raise UsageError("texts must be a list of texts, not one text")
        object.__setattr__(self, "texts", tuple(self.texts))


PrecisionGiven: TypeAlias = str | Auto


@dataclass(frozen=True, slots=True)
class Tier:
    """One precision on a sample: its vectors' cosines to those of fp32, and tokens a second.

    Speeds of one sample may be compared with each other, and no others.
    """

    precision: str
    fingerprint: str
    tokens_per_s: float
    mean_cosine: float
    least_cosine: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured on one set of texts; `absent` says why a precision was not."""

    digest: str
    kind: str
    texts: int
    measured: tuple[Tier, ...]
    absent: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, kept: Any) -> Measurement | None:
        """Read what `asdict` gave; None where that is something else."""
        try:
            found = tuple(Tier(**one) for one in kept["measured"])
            return cls(**{**kept, "measured": found, "absent": dict(kept["absent"])})
        except (TypeError, LookupError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which precision was chosen for a model, and why; `sample` is None where there is but one."""

    model: str
    precision: str
    min_cosine: float
    sample: Measurement | None
    absent: Mapping[str, str]

    def told(self) -> str:
        """Say it in one line."""
        begin = f"precision auto: {self.precision} for {self.model}"
        sample = self.sample
        if sample is None:
            return "; ".join([begin, *_listed(self.absent)])
        taken = next(one for one in sample.measured if one.precision == self.precision)
        near = (
            f"cosine to fp32 {_decimals(taken.mean_cosine)} on average,"
            f" {_decimals(taken.least_cosine)} at least, over {sample.texts:,} texts"
            f" ({sample.kind})"
        )
        others = [self._why_not(one, taken) for one in sample.measured if one is not taken]
        return f"{begin} ({near}); " + "; ".join([*others, *_listed(self.absent)])

    def _why_not(self, one: Tier, taken: Tier) -> str:
        speed = f"{one.precision} has {one.tokens_per_s / taken.tokens_per_s:.2f} of its speed"
        if one.mean_cosine >= self.min_cosine:
            return speed
        mean, least = _decimals(one.mean_cosine), _decimals(one.least_cosine)
        return f"{speed} and a cosine of {mean} (least {least}), below {self.min_cosine:g}"


def settled(
    model: Any,
    precision: PrecisionGiven,
    max_tokens: int | None,
    open_pool: Callable[..., EmbeddingPool],
) -> tuple[str, Choice | None]:
    """Give the precision that a pool is made with; what "auto" chose, and why, beside it.

    Measures where that was not done before, with pools of one worker that `open_pool` makes.
    """
    if isinstance(precision, str):
        if precision != AUTO:
            return precision, None
        precision = Auto()
    elif not isinstance(precision, Auto):
        choices = ", ".join(Precision)
        raise UsageError(f"precision must be one of {choices}, or auto, not {shown(precision)}")
    if not has_choice(model):
        return Precision.FP32, None
    chosen = choose(model, precision, max_tokens, open_pool)
    _log.info("%s", chosen.told())
    return chosen.precision, chosen


def has_choice(model: Any) -> TypeGuard[PathGiven]:
    """Say whether a model is named, or a directory: whatever else has a precision of its own."""
    return isinstance(model, str | bytes | PathLike) and model != "echo"


def is_auto(precision: object) -> bool:
    """Say whether the precision is still to be chosen."""
    return isinstance(precision, Auto) or precision == AUTO


def tell_kept(model: str, precision: str) -> None:
    """Say that there is nothing to choose: a table has its precision already."""
    _log.info("precision auto: %s of %s, which the table's vectors are in", precision, model)


def choose(
    model: Any, wanted: Auto, max_tokens: int | None, open_pool: Callable[..., EmbeddingPool]
) -> Choice:
    """Choose from what is remembered, else from what is measured now. Raises ModelError."""
    there = obstacles(model)
    absent = {precision: why for precision, why in there.items() if why}
    tiers = [precision for precision, why in there.items() if not why]
    if len(tiers) == 1:
        name = ready_model(model, precision=tiers[0], max_tokens=max_tokens).spec.name
        return Choice(name, tiers[0], wanted.min_cosine, None, absent)
    exact = ready_model(model, max_tokens=max_tokens)
    samples = Measurements(exact.fingerprint)
    now, failed = _as_they_are(model, max_tokens, tiers)
    absent |= failed
    found = samples.of(wanted.texts, now)
    if found is None:
        kind = _OWN if wanted.texts else _SHIPPED
        texts = sample_of(wanted.texts or measuring_texts())
        names = ", ".join(now)
        _log.info(
            "precision auto: %s is measured once in %s, on %d texts (%s); it takes some seconds",
            exact.spec.name,
            names,
            len(texts),
            kind,
        )
        found = samples.keep(measure(model, list(now), max_tokens, texts, kind, open_pool))
    best = _fastest(found, wanted.min_cosine)
    why = {**absent, **found.absent}
    return Choice(exact.spec.name, best.precision, wanted.min_cosine, found, why)


def measure(
    model: Any,
    tiers: Sequence[str],
    max_tokens: int | None,
    texts: Sequence[str],
    kind: str,
    open_pool: Callable[..., EmbeddingPool],
) -> Measurement:
    """Embed the texts in each precision, fp32 among them, with one worker after the other."""
    texts, absent, measured = sample_of(texts), {}, []
    exact: Floats | None = None
    for precision in sorted(tiers, key=lambda tier: tier != Precision.FP32):
        try:
            with open_pool(model, precision=precision, max_tokens=max_tokens, workers=1) as pool:
                vectors, speed = _run(pool, texts)
                made = pool.identity
        except MemworkerError as error:
            if exact is None:
                raise
            absent[str(precision)] = f"it failed here: {error}"
            continue
        exact = vectors if exact is None else exact
        near = cosines(exact, vectors)
        measured.append(
            Tier(str(precision), made.fingerprint, speed, float(near.mean()), float(near.min()))
        )
    return Measurement(digest_of(texts), kind, len(texts), tuple(measured), absent)


def sample_of(texts: Sequence[str]) -> list[str]:
    """Return the texts that are measured: different ones, as many as may be."""
    return list(dict.fromkeys(texts))[:_MOST_TEXTS]


def digest_of(texts: Sequence[str]) -> str:
    """Return a name for a sample."""
    told = json.dumps(sample_of(texts))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def cosines(exact: Floats, other: Floats) -> Floats:
    """Return the cosine of each row to the same row of the other, float32[n]."""
    found: Floats = (unit(exact) * unit(other)).sum(1)
    return found


def unit(vectors: Floats) -> Floats:
    """Return each row divided by its length."""
    divided: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return divided


@dataclass(frozen=True, slots=True)
class Measurements:
    """What is remembered of the model whose fp32 vectors have this fingerprint."""

    fingerprint: str

    def of(self, texts: Sequence[str], now: Mapping[str, str]) -> Measurement | None:
        """Give what was measured on these texts; without any, on the user's last, or shipped.

        `now` has the precisions that there are, and their fingerprints: others do not count.
        """
        kept = [
            sample
            for sample in self._kept(remembered.recall(self._name))
            if {one.precision: one.fingerprint for one in sample.measured} == now
        ]
        if texts:
            wanted = digest_of(texts)
            return next((sample for sample in kept if sample.digest == wanted), None)
        tuned = (sample for sample in reversed(kept) if sample.kind == _TUNED)
        shipped = digest_of(measuring_texts())
        return next(tuned, None) or next((one for one in kept if one.digest == shipped), None)

    def keep(self, sample: Measurement) -> Measurement:
        """Remember a sample, and return the one that counts.

        Of two processes that measure at once, both take what the first one kept: they may be
        about to fill one table. What failed may come right: that is measured anew next time.
        """
        if sample.absent:
            return sample
        counts = sample

        def added(before: Any) -> Any:
            nonlocal counts
            kept = self._kept(before)
            same = [one for one in kept if _alike(one, sample)]
            if same and sample.kind != _TUNED:
                counts = same[0]
                return before
            others = [one for one in kept if one.digest != sample.digest]
            return [asdict(one) for one in [*others, sample][-_SAMPLES:]]

        remembered.change(self._name, added)
        return counts

    def keep_tuned(self, sample: Measurement, speeds: Mapping[str, float]) -> Measurement:
        """Remember what `tune` found; its speeds are those of its best settings."""
        measured = tuple(
            replace(one, tokens_per_s=speeds[one.precision]) for one in sample.measured
        )
        return self.keep(replace(sample, kind=_TUNED, measured=measured))

    @property
    def _name(self) -> str:
        engines = " ".join(f"{name} {_version(name)}" for name in ("onnxruntime", "openvino"))
        return f"precisions of {self.fingerprint} with {engines}"

    @staticmethod
    def _kept(value: Any) -> list[Measurement]:
        read = (Measurement.read(one) for one in value) if isinstance(value, list) else ()
        return [sample for sample in read if sample is not None and sample.measured]


_TUNED = "those it was tuned on"


def _as_they_are(
    model: Any, max_tokens: int | None, tiers: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Give each precision's fingerprint, and why one cannot be built after all.

    What is built already costs a look at its stamps.
    """
    now, failed = {}, {}
    for tier in map(str, tiers):
        try:
            now[tier] = ready_model(model, precision=tier, max_tokens=max_tokens).fingerprint
        except ModelUnsupported as error:
            failed[tier] = f"it failed here: {error}"
    return now, failed


def _alike(one: Measurement, other: Measurement) -> bool:
    facts = (one.digest, {each.fingerprint for each in one.measured})
    return facts == (other.digest, {each.fingerprint for each in other.measured})


def _fastest(sample: Measurement, min_cosine: float) -> Tier:
    near = [
        one
        for one in sample.measured
        if one.precision == Precision.FP32 or one.mean_cosine >= min_cosine
    ]
    return max(near, key=lambda one: one.tokens_per_s)


def _run(pool: EmbeddingPool, texts: list[str]) -> tuple[Floats, float]:
    """Embed the texts some times; return their vectors, and tokens a second of processor time."""
    pool.embed(texts)
    best, vectors = 0.0, np.zeros((0, pool.dim), np.float32)
    for _ in range(_ROUNDS):
        before, began = pool.work, _processor_s(pool)
        vectors = pool.embed(texts)
        # What others have of this core meanwhile says nothing of a precision.
        spent, done = _processor_s(pool) - began, pool.work.since(before)
        seconds = spent if spent > 0 else done.encode_s + done.tokenize_s
        best = max(best, done.real_tokens / max(seconds, 1e-6))
    return vectors, best


def _processor_s(pool: EmbeddingPool) -> float:
    total = 0.0
    for pid in pool.worker_pids():
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def _listed(absent: Mapping[str, str]) -> list[str]:
    return [f"{precision}: {why}" for precision, why in absent.items()]


def _decimals(cosine: float) -> str:
    """Write a cosine to four places, or as many as tell it from 1."""
    return f"{cosine:.4f}" if cosine < 0.99995 else f"{cosine:.6f}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
