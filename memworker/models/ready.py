"""From a name to a model on disk that a worker can open: fetch, verify, build, remember."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from memworker.errors import UsageError
from memworker.models import catalog, sources
from memworker.models.cache import MANIFEST, HashBook, ModelCache
from memworker.models.spec import ModelEntry, ModelSpec, Precision, ReadyModel

GRAPH_FILE = "model.onnx"


def ready_model(
    name: str | Path,
    *,
    precision: str = "fp32",
    max_tokens: int | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> ReadyModel:
    """Fetch, verify and build a model, or find it in the cache, and say where it lies.

    `cache_dir` stands for the folder that MEMWORKER_CACHE/models else names;
    `offline` keeps off the network. Raises UnknownModel, ModelUnavailable,
    ModelCorrupt, ModelUnsupported and UsageError.
    """
    chosen = _precision(precision)
    cache = ModelCache.locate(cache_dir)
    entry = catalog.find(name, cache)
    folder = sources.fetch(entry, cache, offline=offline)
    hashes = sources.verified_hashes(entry, folder, cache)
    limit = _token_limit(entry.spec, max_tokens)
    graph = _built(entry, folder, hashes, cache)
    return ReadyModel(
        spec=entry.spec,
        precision=chosen,
        max_tokens=limit,
        graph=graph,
        tokenizer=folder / "tokenizer.json",
        pooled=True,
        fingerprint=_fingerprint(entry, hashes, chosen, limit),
    )


def _precision(precision: str) -> Precision:
    if precision != Precision.FP32:
        raise UsageError(f"precision {precision!r} is not there; for now there is: fp32.")
    return Precision.FP32


def _token_limit(spec: ModelSpec, max_tokens: int | None) -> int:
    if max_tokens is None:
        return spec.max_tokens
    most = spec.position_limit or spec.max_tokens
    if not 3 <= max_tokens <= most:
        raise UsageError(
            f"max_tokens is {max_tokens}; {spec.name} takes 3 to {most}, "
            f"{spec.max_tokens} unless told otherwise."
        )
    return max_tokens


def _built(entry: ModelEntry, folder: Path, hashes: dict[str, str], cache: ModelCache) -> Path:
    key = _build_key(entry, hashes)
    home = cache.root / "built" / key
    if not (home / MANIFEST).is_file():
        with cache.lock(key):
            if not (home / MANIFEST).is_file():
                cache.publish("built", key, partial(_build, entry, folder))
    check_built(home)
    return home / GRAPH_FILE


def check_built(home: Path, *, recheck: bool = False) -> None:
    """Raise ModelCorrupt where a built graph or its weights are not as they were built."""
    book = HashBook(home / MANIFEST, base=home)
    for path in book.files():
        book.require(path, recheck=recheck)
    book.save()


def _build(entry: ModelEntry, folder: Path, draft: Path) -> None:
    from memworker.models.graph import build_bert
    from memworker.models.weights import read_bert

    bert = read_bert(folder, entry.weights)
    build_bert(bert, entry.spec.pooling, entry.spec.normalize, draft / GRAPH_FILE)


def _build_key(entry: ModelEntry, hashes: dict[str, str]) -> str:
    from memworker.models.graph import RECIPE

    facts = [RECIPE, hashes[entry.weights], hashes["config.json"]]
    facts += [entry.spec.pooling, str(entry.spec.normalize)]
    return f"{entry.slug}-{_digest(facts)[:16]}"


def _fingerprint(
    entry: ModelEntry, hashes: dict[str, str], precision: Precision, max_tokens: int
) -> str:
    spec = entry.spec
    facts = [_build_key(entry, hashes).rpartition("-")[2], hashes["tokenizer.json"], precision]
    facts += [str(max_tokens), str(spec.add_special_tokens)]
    facts += [spec.query_prefix, spec.passage_prefix]
    return _digest(facts)[:32]


def _digest(facts: list[str]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
