"""fastembed's catalogue of text models, read in a process of its own and kept in the cache."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from memworker import interpreters
from memworker.errors import ModelUnavailable
from memworker.models.cache import ModelCache
from memworker.models.prefixes import may_be_cut, prefixes_of
from memworker.models.records import keep
from memworker.models.spec import HubRepo, ModelEntry, ModelFile, ModelSpec, Pooling

_READ_TIMEOUT_S = 120.0
# What fastembed's classes do with the graph's first output: pooling, and whether they normalise.
_CLASSES = {
    "OnnxTextEmbedding": (Pooling.CLS, True),
    "PooledNormalizedEmbedding": (Pooling.MEAN, True),
    "PooledEmbedding": (Pooling.MEAN, False),
    "StaticTextEmbedding": (Pooling.MEAN, True),
}


def fastembed_entries(cache: ModelCache) -> list[ModelEntry]:
    """Return an entry for each text model that the installed fastembed knows."""
    try:
        installed = version("fastembed")
    except PackageNotFoundError:
        return []
    record = cache.root / "catalog" / f"fastembed-{installed}.json"
    try:
        return [_entry(model) for model in json.loads(record.read_bytes())]
    except (OSError, ValueError, LookupError, TypeError):
        models = _ask_fastembed()
    keep(record, json.dumps(models))
    return [_entry(model) for model in models]


def _ask_fastembed() -> list[dict[str, Any]]:
    """List the models: importing fastembed loads onnxruntime, which this process must not."""
    try:
        printed = interpreters.output(interpreters.command(_LIST), timeout_s=_READ_TIMEOUT_S)
        models: list[dict[str, Any]] = json.loads(printed)
    except (interpreters.Failed, ValueError) as error:
        raise ModelUnavailable(
            f"fastembed {version('fastembed')} cannot list its models: {error}. If its "
            "installation is damaged, `pip install --force-reinstall fastembed` mends it."
        ) from error
    return models


_LIST = """
import json
from fastembed import TextEmbedding
models = []
for kind in TextEmbedding.EMBEDDINGS_REGISTRY:
    for model in kind._list_supported_models():
        models.append({"class": kind.__name__, "name": model.model, "dim": model.dim,
            "file": model.model_file, "extra": list(model.additional_files),
            "hub": model.sources.hf, "license": model.license, "about": model.description})
print(json.dumps(models))
"""


def _entry(model: dict[str, Any]) -> ModelEntry:
    name, about = str(model["name"]), str(model["about"])
    pooling, normalize = _CLASSES.get(model["class"], (Pooling.MEAN, True))
    static = model["class"] == "StaticTextEmbedding"
    query, passage = prefixes_of(name)
    spec = ModelSpec(
        name=name,
        dim=int(model["dim"]),
        pooling=pooling,
        normalize=normalize,
        max_tokens=_advised_tokens(about),
        query_prefix=query,
        passage_prefix=passage,
        license=str(model["license"]),
        description=about,
        static=static,
        matryoshka=may_be_cut(name),
        add_special_tokens=not static,
    )
    hub = HubRepo(str(model["hub"])) if model["hub"] else None
    return ModelEntry(
        spec, str(model["file"]), _files(model), hub=hub, unsupported=_objection(model)
    )


def _files(model: dict[str, Any]) -> tuple[ModelFile, ...]:
    needed = [str(model["file"]), *map(str, model["extra"]), "tokenizer.json"]
    optional = ["config.json", "tokenizer_config.json"]
    files = [ModelFile(path) for path in needed]
    return (*files, *(ModelFile(path, required=False) for path in optional))


def _objection(model: dict[str, Any]) -> str:
    if model["class"] not in _CLASSES:
        return f"it needs what fastembed's {model['class']} does, which memworker does not do"
    return "" if model["hub"] else "fastembed has no hub repository for it"


def _advised_tokens(about: str) -> int:
    found = re.search(r"(\d+) input tokens", about)
    return int(found[1]) if found else 512
