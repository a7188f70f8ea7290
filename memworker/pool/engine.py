"""What a pool must know of an encoder before any worker has loaded it: one `Engine` a kind.

A new kind of encoder comes in here: an `Engine`, a loader in a module that a worker may
import, and a line in `resolve` that chooses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, takewhile
from os import PathLike
from typing import Protocol, TypeAlias, runtime_checkable

from memworker.errors import UsageError
from memworker.models import Precision, ReadyModel, ready_model
from memworker.paths import PathGiven
from memworker.pool import plan
from memworker.pool.budget import Footprint, worker_bytes
from memworker.pool.echo import EchoLoader
from memworker.pool.encoder import OnnxLoader
from memworker.pool.openvino_encoder import OpenVinoLoader
from memworker.pool.pairs import PairLoader
from memworker.pool.tokenize import Tokenization
from memworker.pool.worker import Loader
from memworker.values import positive, shown

_MINILM_FLOPS = 21.2e6
_SHARD_TOKENS = 4096
# An int8 token takes less time, and less of a run's time is anything else: with smaller runs more
# of it stays in the cache, and less is padding.
_INT8_BATCH_TOKENS, _INT8_RUN_TOKENS = 320, 5.0
# OpenVINO does larger runs better; its libraries, and what its kernels for all shapes grow to.
_BF16_BATCH_TOKENS, _BF16_RUN_TOKENS = 768, 16.0
_BF16_WORKER_BYTES = 100 << 20
# What a token of a long text takes that is run alone, a number of its row; scores in blocks.
_LONG_TOKEN_BYTES = 72
# OpenVINO also writes out which token sees which, where that is not all of them.
_BF16_PAIR_BYTES = 5
_STATIC_WORKER_BYTES = 84 << 20
_STATIC_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """What a pool's vectors are made with; equal fingerprints may be compared.

    `normalized` vectors have length one. The first numbers of a `matryoshka` model's
    vectors are a vector too, once normalised again; `cut_from` is how many the model gives
    where fewer were asked for. `flops_per_token` is 0 where it is
    not known, `tokenization` None where there is none that we know.
    """

    name: str
    precision: str
    max_tokens: int
    dim: int
    fingerprint: str
    flops_per_token: float = 0.0
    normalized: bool = False
    matryoshka: bool = False
    cut_from: int = 0
    tokenization: Tokenization | None = None
    pooling: str = "mean"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of these vectors: that they lose more than they need to."""
        if not self.cut_from or self.matryoshka:
            return ()
        return (
            f"{self.name} is not known to be trained so that the first {self.dim} of its"
            f" {self.cut_from} numbers suffice (Matryoshka): compare its answers with the whole"
            " vectors' before you rely on them",
        )


@runtime_checkable
class Engine(Protocol):
    """An encoder as the parent sees it: what it gives, takes and costs, and how it is loaded.

    `costs` says how texts are cut for it, with the session run that suits it best where
    the caller asked for no other; `footprint` what memory its workers take. Where `tunable`,
    the size of a session run makes a difference. `loader` gives what a worker calls: it is
    pickled by value, and gets the costs that were settled on.
    """

    @property
    def identity(self) -> Identity: ...
    @property
    def costs(self) -> plan.Costs: ...
    @property
    def footprint(self) -> Footprint: ...
    @property
    def tunable(self) -> bool: ...
    def loader(self, costs: plan.Costs) -> Loader: ...


ModelGiven: TypeAlias = PathGiven | ReadyModel | Loader | Engine


def resolve(
    model: ModelGiven,
    *,
    precision: str = "fp32",
    max_tokens: int | None = None,
    dim: int | None = None,
) -> Engine:
    """Get a model's files ready (fetched, verified, built), without starting a worker.

    Raises UsageError for an unknown precision, fewer than 1 token or more numbers a vector
    than the model gives, ModelError.
    """
    precision = checked_precision(precision)
    found, size = positive("max_tokens", max_tokens), positive("dim", dim)
    match model:
        case "echo":
            return LoaderEngine(_echo(size), "echo")
        case EchoLoader():
            return _whole(LoaderEngine(model, "echo"), size)
        case str() | bytes() | PathLike():
            ready = ready_model(model, precision=precision, max_tokens=found, dim=size)
            return _of_model(ready)
        case ReadyModel():
            return _of_model(model.cut_to(size))
        case Engine():
            return _whole(model, size)
    if not callable(model):
        raise UsageError(f"a model is a name or a directory, not {model!r}")
    return _whole(LoaderEngine(model, type(model).__qualname__), size)


def checked_precision(given: object) -> Precision:
    """Return a precision. Raises UsageError for what is none."""
    if not isinstance(given, str) or given not in list(Precision):
        choices = ", ".join(Precision)
        raise UsageError(f"precision must be one of {choices}, or auto, not {shown(given)}")
    return Precision(given)


def _echo(dim: int | None) -> EchoLoader:
    if dim is not None and dim < EchoLoader.least_dim:
        raise UsageError(f"dim is {dim}; echo gives vectors of {EchoLoader.least_dim} or more")
    return EchoLoader() if dim is None else EchoLoader(dim)


def _whole(engine: Engine, dim: int | None) -> Engine:
    """Refuse to cut the vectors of what is no model of ours."""
    made = engine.identity
    if dim not in (None, made.dim):
        raise UsageError(f"dim is {dim}; {made.name} gives vectors of {made.dim} numbers, no fewer")
    return engine


def _of_model(model: ReadyModel) -> Engine:
    if model.precision is Precision.BF16:
        return OpenVinoEngine(model)
    if model.spec.pair_width:
        return PairEngine(model)
    return StaticEngine(model) if model.spec.static else OnnxEngine(model)


@dataclass(frozen=True, slots=True)
class OnnxEngine:
    """A transformer in ONNX Runtime; its costs are measured, see docs/PERFORMANCE.md."""

    model: ReadyModel
    tunable = True

    @property
    def identity(self) -> Identity:
        model = self.model
        return Identity(
            name=model.spec.name,
            precision=str(model.precision),
            max_tokens=model.max_tokens,
            dim=model.spec.dim,
            fingerprint=model.fingerprint,
            flops_per_token=model.flops_per_token,
            normalized=model.spec.normalize,
            matryoshka=model.spec.matryoshka,
            cut_from=model.spec.cut_from,
            tokenization=Tokenization(
                model.tokenizer,
                model.spec.add_special_tokens,
                model.spec.lowercase,
                model.spec.passage_prefix,
                model.spec.query_prefix,
            ),
            pooling=str(model.spec.pooling),
        )

    @property
    def costs(self) -> plan.Costs:
        most_tokens = self.model.max_tokens
        scale = _MINILM_FLOPS / (self.model.flops_per_token or _MINILM_FLOPS)
        shard_tokens = min(max(int(_SHARD_TOKENS * scale), most_tokens), _SHARD_TOKENS)
        costs = plan.Costs(max_tokens=most_tokens, shard_tokens=shard_tokens)
        if self.model.precision is not Precision.INT8:
            return costs
        return replace(costs, batch_tokens=_INT8_BATCH_TOKENS, run_tokens=_INT8_RUN_TOKENS)

    @property
    def footprint(self) -> Footprint:
        files = (path for path in self.model.graph.parent.iterdir() if path.is_file())
        return Footprint(
            self.model.spec.dim,
            sum(path.stat().st_size for path in files),
            worker_bytes=worker_bytes(self.model.tokenizer),
            width=self.model.spec.width,
            longest_bytes=self.model.max_tokens * self.model.spec.width * _LONG_TOKEN_BYTES,
        )

    def loader(self, costs: plan.Costs) -> Loader:
        return OnnxLoader(self.model, costs)


class OpenVinoEngine(OnnxEngine):
    """A transformer in OpenVINO, its products in bf16."""

    __slots__ = ()

    @property
    def costs(self) -> plan.Costs:
        known = super().costs
        lengths = tuple(takewhile(lambda length: length < known.max_tokens, _lengths()))
        return replace(
            known,
            batch_tokens=_BF16_BATCH_TOKENS,
            run_tokens=_BF16_RUN_TOKENS,
            lengths=(*lengths, known.max_tokens),
        )

    @property
    def footprint(self) -> Footprint:
        # Each worker holds the weights of products in bf16: two bytes for two operations a token.
        weights = int(self.model.flops_per_token)
        own = worker_bytes(self.model.tokenizer, _BF16_WORKER_BYTES)
        known = super().footprint
        longest = known.longest_bytes + _BF16_PAIR_BYTES * self.model.max_tokens**2
        return replace(known, worker_bytes=own + weights, longest_bytes=longest)

    def loader(self, costs: plan.Costs) -> Loader:
        return OpenVinoLoader(self.model, costs)


def _lengths() -> Iterator[int]:
    """Give the lengths that runs are padded to: by 4 to 32, by 8 to 128, by 16 to 256, ..."""
    yield from range(4, 32, 4)
    yield from range(32, 128, 8)
    for octave in count(7):
        yield from range(1 << octave, 2 << octave, (1 << octave) // 8)


class PairEngine(OnnxEngine):
    """A cross-encoder in ONNX Runtime: one number a pair of texts."""

    __slots__ = ()

    def loader(self, costs: plan.Costs) -> Loader:
        return PairLoader(self.model, costs)


class StaticEngine(OnnxEngine):
    """A table of token vectors and their mean, in ONNX Runtime too."""

    __slots__ = ()

    @property
    def costs(self) -> plan.Costs:
        # Tokenising is the work, a text at a time: large runs cost nothing but padding.
        return plan.Costs(
            max_tokens=self.model.max_tokens,
            shard_tokens=1 << 16,
            batch_tokens=1 << 12,
            run_tokens=100.0,
        )

    @property
    def footprint(self) -> Footprint:
        # The tokenizer's cache grows to its bound; of the table a run reads rows, and adds them up.
        known = super().footprint
        own = worker_bytes(self.model.tokenizer, _STATIC_WORKER_BYTES)
        longest = self.model.max_tokens * known.width * _STATIC_TOKEN_BYTES
        return replace(
            known, worker_bytes=own, token_bytes=_STATIC_TOKEN_BYTES, longest_bytes=longest
        )


@dataclass(frozen=True, slots=True)
class LoaderEngine:
    """A caller's own loader, of which only the dimension is known; echo is one."""

    load: Loader
    name: str
    tunable = False

    @property
    def identity(self) -> Identity:
        dim = self.load.dim
        return Identity(self.name, "fp32", 0, dim, fingerprint=f"{self.name}-{dim}")

    @property
    def costs(self) -> plan.Costs:
        # Full slots, and windows as they come.
        return plan.Costs(max_tokens=1 << 30, shard_tokens=1 << 30)

    @property
    def footprint(self) -> Footprint:
        # A loader may say what a worker of it takes, and a padded token of a run.
        known = {
            name: getattr(self.load, name)
            for name in ("worker_bytes", "token_bytes")
            if hasattr(self.load, name)
        }
        return Footprint(self.load.dim, weights_bytes=0, **known)

    def loader(self, costs: plan.Costs) -> Loader:
        return self.load
