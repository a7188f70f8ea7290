"""From a name to a model on disk that a worker can open: fetch, verify, build, remember."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memworker.errors import (
    ModelCorrupt,
    ModelUnavailable,
    ModelUnsupported,
    UnknownModel,
    UsageError,
)
from memworker.models import bf16, catalog, sources
from memworker.models.build import (
    TOKENIZER_FILE,
    built_folders,
    built_graph,
    check_built,
    digest_of,
)
from memworker.models.cache import ModelCache
from memworker.models.cross_encoder import as_cross_encoder
from memworker.models.directory import token_limits
from memworker.models.family import family_of, read_config
from memworker.models.head import head_facts, weight_files
from memworker.models.repository import fetch_repository, is_repository
from memworker.models.spec import (
    Dense,
    ModelEntry,
    ModelSpec,
    Precision,
    ReadyModel,
    refuse_dim,
)
from memworker.paths import PathGiven

if TYPE_CHECKING:
    from memworker.models.foreign import ForeignGraph

# Special tokens at both ends and one between them.
_FEWEST_TOKENS = 3
# A mean has no limit of its own; this one bounds what a single row may cost.
_MOST_STATIC_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelListing:
    """What is known of a model: its entry, and whether its files are here."""

    spec: ModelSpec
    aliases: tuple[str, ...]
    precisions: tuple[Precision, ...]
    cached: bool
    unsupported: str


def ready_model(
    name: PathGiven,
    *,
    precision: str = "fp32",
    max_tokens: int | None = None,
    dim: int | None = None,
    cache_dir: PathGiven | None = None,
    offline: bool = False,
) -> ReadyModel:
    """Fetch, verify and build a model, or find it in the cache, and say where it lies.

    `precision` is one of the model's own: "fp32", and for what is built from safetensors
    "int8", and "bf16" where OpenVINO is installed and the processor has instructions for it.
    `dim` keeps the first numbers of each vector. `cache_dir` stands for the folder that
    MEMWORKER_CACHE/models else names; `offline` keeps off the network. Raises
    UnknownModel, ModelUnavailable, ModelCorrupt, ModelUnsupported and UsageError.
    """
    cache = ModelCache.locate(cache_dir)
    cache.clear()
    entry = _entry(name, cache, offline)
    _refuse_unsupported(entry)
    return _made_ready(entry, cache, precision, max_tokens, offline).cut_to(dim)


def ready_reranker(
    name: PathGiven,
    *,
    precision: str = "fp32",
    max_tokens: int | None = None,
    cache_dir: PathGiven | None = None,
    offline: bool = False,
) -> ReadyModel:
    """Do what `ready_model` does for a cross-encoder: a folder, or a repository of the hub.

    Of safetensors there are "fp32" and "int8"; an ONNX file runs as it is. Raises
    UnknownModel, ModelUnavailable, ModelCorrupt, ModelUnsupported and UsageError.
    """
    cache = ModelCache.locate(cache_dir)
    cache.clear()
    entry = as_cross_encoder(_entry(name, cache, offline))
    has = ("fp32",) if entry.weights.endswith(".onnx") else ("fp32", "int8")
    if precision not in has:
        raise UsageError(
            f"the reranker {entry.spec.name} has no precision {precision!r}; it has"
            f" {' and '.join(has)}"
        )
    return _made_ready(entry, cache, precision, max_tokens, offline)


def _made_ready(
    entry: ModelEntry, cache: ModelCache, precision: str, max_tokens: int | None, offline: bool
) -> ReadyModel:
    chosen = _precision(entry, precision)
    if chosen is Precision.BF16:
        bf16.refuse_without()
    folder = sources.fetch(entry, cache, offline=offline)
    hashes = sources.verified_hashes(entry, folder, cache)
    if entry.weights.endswith(".onnx"):
        return _foreign(entry, folder, hashes, cache, max_tokens, chosen)
    graph, recipe = built_graph(entry, folder, hashes, cache, chosen)
    limit = token_limit(entry.spec, max_tokens)
    # The tokenizer beside a static graph gives the same ids in less time.
    tokenizer = graph.with_name(TOKENIZER_FILE) if entry.spec.static else folder / entry.tokenizer
    # OpenVINO would compute them in bf16 too.
    outside = chosen is Precision.BF16 and bool(entry.spec.dense)
    return ReadyModel(
        spec=entry.spec,
        precision=chosen,
        max_tokens=limit,
        graph=graph,
        tokenizer=tokenizer,
        pooled=True,
        fingerprint=_fingerprint(entry.spec, recipe, hashes[entry.tokenizer], chosen, limit),
        needs_l2=outside and entry.spec.normalize,
        flops_per_token=0.0 if entry.spec.static else _flops_per_token(folder),
        home=folder if outside else None,
    )


def _flops_per_token(folder: Path) -> float:
    config = read_config(folder)
    return family_of(config).flops_per_token(config)


def _entry(name: PathGiven, cache: ModelCache, offline: bool = False) -> ModelEntry:
    """Find a model, a repository of the hub being fetched first where no catalogue has it."""
    try:
        return catalog.find(name, cache)
    except UnknownModel as unknown:
        if not isinstance(name, str) or not is_repository(name):
            raise
        try:
            fetch_repository(name, cache, offline=offline)
        except ModelUnavailable as failure:
            raise UnknownModel(f"{unknown} {failure}") from failure
    return catalog.find(name, cache)


def list_models(*, cache_dir: PathGiven | None = None) -> list[ModelListing]:
    """Return the built-in models, then fastembed's."""
    cache = ModelCache.locate(cache_dir)
    return [_listing(entry, cache) for entry in catalog.entries(cache)]


def describe_model(name: PathGiven, *, cache_dir: PathGiven | None = None) -> ModelListing:
    """Return what is known of one model, without fetching or building anything of it.

    Raises UnknownModel, and ModelUnsupported for a directory that cannot be run.
    """
    cache = ModelCache.locate(cache_dir)
    return _listing(catalog.find(name, cache), cache)


def _listing(entry: ModelEntry, cache: ModelCache) -> ModelListing:
    return ModelListing(
        spec=entry.spec,
        aliases=entry.aliases,
        precisions=_precisions(entry),
        cached=sources.is_here(entry, cache),
        unsupported=entry.unsupported,
    )


def check_choice(
    name: PathGiven,
    *,
    precision: str | None,
    max_tokens: int | None,
    dim: int | None,
    cache_dir: PathGiven | None = None,
) -> None:
    """Refuse what is known to be wrong, without fetching or building anything.

    A repository of the hub that is not here is known to the hub alone, and passes. `precision`
    None is still to be chosen. Raises UnknownModel, ModelUnsupported and UsageError.
    """
    try:
        entry = catalog.find(name, ModelCache.locate(cache_dir))
    except UnknownModel:
        if is_repository(name):
            return
        raise
    _refuse_unsupported(entry)
    if precision is not None:
        _precision(entry, precision)
    token_limit(entry.spec, max_tokens)
    refuse_dim(entry.spec, dim)


def obstacles(name: PathGiven, *, cache_dir: PathGiven | None = None) -> dict[str, str]:
    """Say of each precision why it cannot be had of a model on this machine; "" where it can.

    Raises UnknownModel, ModelUnsupported.
    """
    cache = ModelCache.locate(cache_dir)
    entry = _entry(name, cache)
    _refuse_unsupported(entry)
    if entry.spec.static:
        others = set(map(str, Precision)) - {"fp32"}
        return {"fp32": "", **dict.fromkeys(sorted(others), "a static model has no products")}
    why = dict.fromkeys(map(str, Precision), "")
    folder = entry.directory or sources.cached_folder(entry, cache)
    if entry.weights.endswith(".onnx") and folder is not None:
        from memworker.models.foreign import inspect

        hashes = sources.verified_hashes(entry, folder, cache)
        facts = inspect(folder / entry.weights, hashes[entry.weights], folder, cache)
        why = {str(precision): facts.obstacle(precision) for precision in Precision}
    why[Precision.BF16] = why[Precision.BF16] or bf16.obstacle()
    return why


def pull_model(
    name: PathGiven, *, precision: str = "fp32", cache_dir: PathGiven | None = None
) -> ReadyModel:
    """Make a model ready, fetching again what is there but damaged."""
    cache = ModelCache.locate(cache_dir)
    entry = _entry(name, cache)
    try:
        verify_model(name, cache_dir=cache_dir)
    except ModelCorrupt:
        sources.discard(sources.fetched_to(entry, cache), cache)
        for folder in built_folders(entry, cache):
            cache.discard(folder)
    return ready_model(name, precision=precision, cache_dir=cache_dir)


def verify_model(name: PathGiven, *, cache_dir: PathGiven | None = None) -> dict[Path, str]:
    """Hash every cached file of a model afresh and return the hashes by path.

    Empty where nothing is cached. Raises ModelCorrupt for the first file that
    is not what was fetched or built.
    """
    cache = ModelCache.locate(cache_dir)
    entry = catalog.find(name, cache)
    folder = sources.here(entry, cache)
    if folder is None:
        return {}
    fetched = sources.verified_hashes(entry, folder, cache, recheck=True)
    hashes = {folder / path: digest for path, digest in fetched.items()}
    for home in built_folders(entry, cache):
        hashes |= {home / path: d for path, d in check_built(home, recheck=True).items()}
    return hashes


def token_limit(spec: ModelSpec, max_tokens: int | None) -> int:
    """Return the truncation in force; UsageError where the model cannot take so many."""
    if max_tokens is None:
        return spec.max_tokens
    fewest = 1 if spec.static else _FEWEST_TOKENS
    most = _MOST_STATIC_TOKENS if spec.static else spec.position_limit or spec.max_tokens
    if not fewest <= max_tokens <= most:
        raise UsageError(
            f"max_tokens is {max_tokens}; {spec.name} takes {fewest} to {most}, "
            f"{spec.max_tokens} unless told otherwise."
        )
    return max_tokens


def _precision(entry: ModelEntry, precision: str) -> Precision:
    there = _precisions(entry)
    if precision not in there:
        raise UsageError(
            f"{entry.spec.name} has no precision {precision!r}; it has: {', '.join(there)}."
        )
    return Precision(precision)


def _precisions(entry: ModelEntry) -> tuple[Precision, ...]:
    if entry.unsupported:
        return ()
    # A static model has no linear layers to quantise.
    return (Precision.FP32,) if entry.spec.static else tuple(Precision)


def _refuse_unsupported(entry: ModelEntry) -> None:
    if entry.unsupported:
        raise ModelUnsupported(
            f"{entry.spec.name} cannot be used: {entry.unsupported}. "
            "`memworker models list` shows those that can."
        )


def _foreign(
    entry: ModelEntry,
    folder: Path,
    hashes: dict[str, str],
    cache: ModelCache,
    max_tokens: int | None,
    precision: Precision,
) -> ReadyModel:
    """Take an ONNX file, in fp32 as it is; what it leaves out, the encoder does as `spec` says."""
    from memworker.models.foreign import external_hashes, inspect
    from memworker.models.foreign_build import ForeignFile, built_foreign

    path = folder / entry.weights
    facts = inspect(path, hashes[entry.weights], folder, cache)
    if why := facts.obstacle(precision):
        raise ModelUnsupported(f"there is no {precision} of {path}: {why}. Take precision fp32.")
    spec = _completed(entry, folder, facts)
    limit = token_limit(spec, max_tokens)
    data = external_hashes(entry, path, facts, hashes, cache)
    shape = [*head_facts(spec), str(facts.rank)]
    layers = [hashes[name] for name in weight_files(spec.dense)]
    graph, made = path, ["as-is-1", hashes[entry.weights], *data]
    if precision is not Precision.FP32:
        words = hashes[entry.tokenizer]
        file = ForeignFile(path, tuple(made[1:]), folder / entry.tokenizer, words)
        graph, made = built_foreign(entry, spec, file, cache, precision)
    recipe = digest_of([*made, *shape, *layers])
    return ReadyModel(
        spec=spec,
        precision=precision,
        max_tokens=limit,
        graph=graph,
        tokenizer=folder / entry.tokenizer,
        pooled=facts.rank == 2,
        fingerprint=_fingerprint(spec, recipe, hashes[entry.tokenizer], precision, limit),
        needs_l2=spec.normalize,
        flops_per_token=facts.flops_per_token,
        # A graph that pools has what is behind pooling too.
        home=folder if spec.dense and facts.rank == 3 else None,
    )


def _completed(entry: ModelEntry, folder: Path, facts: ForeignGraph) -> ModelSpec:
    """Add to the catalogue's facts what only the files say."""
    spec = entry.spec
    dim = facts.dim
    if spec.dense and facts.rank == 3:
        _refuse_misfit(folder, spec.dense[0], dim)
        dim = spec.dim
    if entry.directory is None:
        limit, positions = token_limits(folder)
        spec = replace(spec, max_tokens=limit, position_limit=positions)
    if dim and spec.dim and dim != spec.dim:
        raise ModelCorrupt(
            f"{folder / entry.weights} gives {dim} dimensions, expected {spec.dim}: "
            "it is another model than its config or the catalogue says."
        )
    if not (dim or spec.dim):
        raise ModelUnsupported(
            f"neither {folder / entry.weights} nor config.json says how many dimensions there "
            "are; add hidden_size to config.json."
        )
    return replace(spec, dim=dim or spec.dim)


def _refuse_misfit(folder: Path, first: Dense, width: int) -> None:
    if width not in (0, first.inputs):
        raise ModelCorrupt(
            f"{folder / first.folder} takes {first.inputs} numbers, and the graph of {folder} gives"
            f" {width}: they are not of one model."
        )


def _fingerprint(
    spec: ModelSpec, recipe: str, tokenizer: str, precision: Precision, max_tokens: int
) -> str:
    facts = [recipe, tokenizer, precision, str(max_tokens), str(spec.add_special_tokens)]
    facts += [spec.query_prefix, spec.passage_prefix, *(["lowercase"] if spec.lowercase else [])]
    return digest_of(facts)[:32]
