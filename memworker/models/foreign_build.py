"""Builds what an ONNX file of others' becomes in int8 and bf16, once, and keeps it."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memworker import interpreters
from memworker.errors import ModelUnsupported
from memworker.models import foreign_bf16, foreign_int8
from memworker.models.build import (
    GRAPH_FILE,
    OPENVINO_FILE,
    check_built,
    digest_of,
    pack,
    packing_facts,
    refuse_full_disk,
)
from memworker.models.cache import MANIFEST, ModelCache
from memworker.models.calibration import (
    calibration_digest,
    calibration_facts,
    calibration_ids,
    with_rare_tokens,
)
from memworker.models.family import read_config
from memworker.models.onnx_file import WEIGHTS_FILE
from memworker.models.records import keep
from memworker.models.rounding import PAIR_LIMIT
from memworker.models.spec import ModelEntry, ModelSpec, Precision

_log = logging.getLogger(__name__)

_TIMEOUT_S = 3600.0
# What is short today may not be so tomorrow.
_PASSING = ("signal", "took more", "memory", "MemoryError", "bad_alloc", "space", "resource")


class EngineRefusal(ModelUnsupported):
    """An engine cannot do it with this file, today or tomorrow."""


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """An ONNX file, the hashes of all that it is made of, and its tokenizer with its hash."""

    path: Path
    hashes: tuple[str, ...]
    tokenizer: Path
    tokenizer_hash: str


def built_foreign(
    entry: ModelEntry, spec: ModelSpec, file: ForeignFile, cache: ModelCache, precision: Precision
) -> tuple[Path, list[str]]:
    """Return the graph in that precision, built where it is not there, and what made it so.

    Raises ModelUnsupported where the file cannot be taken so.
    """
    recipe = [*_recipe(file, precision), *file.hashes]
    facts = [*recipe, *packing_facts(precision)]
    if precision is Precision.INT8:
        facts += calibration_facts(spec)
    key = f"{entry.slug}-{digest_of(facts)[:16]}"
    home = cache.root / "built" / key
    if not (home / MANIFEST).is_file():
        with cache.lock(key):
            # Another process may have built it while this one waited.
            if not (home / MANIFEST).is_file():
                _build(spec, file, precision, cache, key)
    check_built(home)
    return home / (OPENVINO_FILE if precision is Precision.BF16 else GRAPH_FILE), recipe


def _recipe(file: ForeignFile, precision: Precision) -> list[str]:
    if precision is Precision.BF16:
        return [foreign_bf16.RECIPE]
    return [foreign_int8.RECIPE, str(PAIR_LIMIT), calibration_digest(), file.tokenizer_hash]


def _build(
    spec: ModelSpec, file: ForeignFile, precision: Precision, cache: ModelCache, key: str
) -> None:
    """Build it; what an engine refused once it would refuse again, so that is kept."""
    refused = cache.root / "facts" / f"{key}-refused.txt"
    with suppress(OSError):
        raise ModelUnsupported(refused.read_text("utf-8"))
    write = _write_bf16 if precision is Precision.BF16 else _write_int8
    try:
        cache.publish("built", key, partial(write, spec, file))
    except EngineRefusal as error:
        keep(refused, str(error))
        raise


def _write_bf16(spec: ModelSpec, file: ForeignFile, draft: Path) -> None:
    job = {"source": str(file.path), "target": str(draft / OPENVINO_FILE)}
    given = json.dumps(job | {"ids": calibration_ids(spec, file.tokenizer)})
    _run(interpreters.command(_BF16), file.path, draft, "bf16", given)


def _write_int8(spec: ModelSpec, file: ForeignFile, draft: Path) -> None:
    ids = calibration_ids(spec, file.tokenizer)
    words = _vocabulary(file, max(map(max, ids)) + 1)
    _log.info("%s is built in int8, once: it may take minutes", spec.name)
    plain = draft / "plain"
    plain.mkdir()
    job = {"source": str(file.path), "target": str(plain / GRAPH_FILE)}
    given = json.dumps(job | {"ids": with_rare_tokens(ids, words)})
    _run(interpreters.command(_INT8), file.path, draft, "int8", given)
    pack(plain / GRAPH_FILE, draft / GRAPH_FILE)
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        (plain / name).unlink(missing_ok=True)
    plain.rmdir()


def _vocabulary(file: ForeignFile, least: int) -> int:
    """Return how many tokens there are, as far as the tokenizer and the config tell."""
    told = read_config(file.tokenizer.parent).get("vocab_size")
    tokenizer = json.loads(file.tokenizer.read_text("utf-8"))
    known = len((tokenizer.get("model") or {}).get("vocab") or ())
    counts = [count for count in (told, known) if isinstance(count, int) and count > 0]
    return max(min(counts, default=0), least)


def _run(command: list[str], source: Path, draft: Path, precision: str, given: str) -> None:
    """Run what may load an engine in a process of its own, for this one must not."""
    try:
        interpreters.output(command, timeout_s=_TIMEOUT_S, given=given, OMP_NUM_THREADS="1")
    except interpreters.Failed as failure:
        refuse_full_disk(source.stat().st_size, draft)
        passing = any(word in str(failure) for word in _PASSING)
        raise (ModelUnsupported if passing else EngineRefusal)(
            f"there is no {precision} of {source}: {failure}. Take precision fp32, in which the"
            " file runs as it is."
        ) from failure


_INT8 = "from memworker.models.foreign_int8 import main; main()"
_BF16 = "from memworker.models.foreign_bf16 import main; main()"
