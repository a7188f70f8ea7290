"""A repository of the hub that no catalogue names: "owner/name", found in caches or fetched."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path, PurePosixPath

from memworker.errors import ModelUnavailable
from memworker.models import hub, hubcache
from memworker.models.cache import MANIFEST, ModelCache
from memworker.models.directory import ONNX_PATHS, builds_from, is_whole
from memworker.models.foreign import data_of
from memworker.models.spec import HubRepo, ModelFile, slug_of

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DESCRIBING = ("config.json", "tokenizer.json")


def is_repository(name: object) -> bool:
    """Say whether a name could be a repository's, and nothing that lies here."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and ".." not in name


def find_repository(name: str, cache: ModelCache) -> Path | None:
    """Return the folder of a repository that was fetched, by us or by another program."""
    if not is_repository(name):
        return None
    ours = _home(name, cache)
    if (ours / MANIFEST).is_file():
        return ours
    found = hubcache.snapshot_of(HubRepo(name))
    # transformers and others fetch parts: a config, or weights that are pickled.
    return found if found is not None and is_whole(found) else None


def fetch_repository(name: str, cache: ModelCache, *, offline: bool = False) -> None:
    """Fetch what memworker needs of a repository into the cache, as a folder of its own.

    Raises ModelUnavailable, saying what was looked for and where.
    """
    switch = hub.offline_switch() or ("the call asks to stay offline" if offline else "")
    if why := switch or hub.unreachable():
        looked = ", ".join(str(place) for place, _ in hubcache.places())
        raise ModelUnavailable(
            f"The hub's {name} cannot be fetched: {why}. Its config.json, tokenizer.json and"
            f" weights are not in {looked} either. Fetch it where there is a network (memworker"
            " models pull), or copy its folder to this machine and give its path, --model DIR."
        )
    key = slug_of(name)
    with cache.lock(key):
        if not (_home(name, cache) / MANIFEST).is_file():
            cache.publish("files", key, partial(_fill, name))


def _home(name: str, cache: ModelCache) -> Path:
    return cache.root / "files" / slug_of(name)


def _fill(name: str, draft: Path) -> None:
    """Fetch what describes the model, then the weights that it can be built from or run as."""
    try:
        there = [path for path in hub.listing(name) if _is_inside(path)]
        describing = [path for path in there if _describes(path)]
        _get(name, describing, draft)
        tables = [path for path in there if PurePosixPath(path).suffix == ".safetensors"]
        graphs = [path for path in ONNX_PATHS if path in there][:1]
        weights = [path for path in tables if _is_weights(path)]
        if graphs and not (weights and builds_from(draft)):
            _get(name, graphs, draft)
            home = PurePosixPath(graphs[0]).parent
            beside = {str(home / place) for place in data_of(draft / graphs[0])}
            weights = [p for p in there if p in beside or (p in tables and "/" in p)]
        if not weights and not graphs:
            raise ModelUnavailable(
                f"{name} has neither model.safetensors nor {ONNX_PATHS[0]} (it has "
                f"{', '.join(sorted(there)[:12])}); memworker loads no other weights."
            )
        _get(name, weights, draft)
    except hub.HubFailed as failure:
        raise ModelUnavailable(f"{name} could not be fetched: {failure}") from failure


def _is_inside(path: str) -> bool:
    place = PurePosixPath(path)
    return not place.is_absolute() and ".." not in place.parts and "\\" not in path


def _describes(path: str) -> bool:
    """Whether it is a small file that says what the model is."""
    place = PurePosixPath(path)
    if len(place.parts) == 1:
        return place.suffix == ".json" or path == "README.md"
    return len(place.parts) == 2 and place.name in _DESCRIBING


def _is_weights(path: str) -> bool:
    place = PurePosixPath(path)
    shard = re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", place.name)
    return bool(shard) and len(place.parts) <= 2 and place.parts[0] not in ("onnx", "openvino")


def _get(name: str, paths: list[str], draft: Path) -> None:
    hub.fetch_into(HubRepo(name), [ModelFile(path) for path in paths], draft)
