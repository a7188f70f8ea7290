"""Builds the graph of a safetensors model once, and keeps it with packed weights."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import platform
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path

from memworker import interpreters, processor
from memworker.errors import ModelCorrupt, ModelUnsupported
from memworker.models.cache import MANIFEST, ModelCache
from memworker.models.calibration import calibration_facts
from memworker.models.cross_encoder import as_pairs
from memworker.models.family import Family, family_of, read_config
from memworker.models.head import Head, head_facts, read_head, weight_files
from memworker.models.onnx_file import WEIGHTS_FILE
from memworker.models.records import HashBook
from memworker.models.spec import ModelEntry, Precision

_log = logging.getLogger(__name__)

GRAPH_FILE = "model.onnx"
OPENVINO_FILE = "model.xml"
TOKENIZER_FILE = "tokenizer.json"
_PACK_TIMEOUT_S = 900.0


def built_graph(
    entry: ModelEntry,
    folder: Path,
    hashes: dict[str, str],
    cache: ModelCache,
    precision: Precision = Precision.FP32,
) -> tuple[Path, str]:
    """Return the graph's path and its recipe's digest, building it where it is not there.

    The digest depends on the model and the recipe alone; the file is also bound
    to this processor and this onnxruntime, whose packing of weights it holds.
    """
    family = None if entry.spec.static else _family(entry, folder)
    recipe = _recipe_digest(entry, family, hashes, precision)
    facts = [recipe, *_own_tokenizer(entry, hashes)]
    if precision is Precision.INT8:
        facts += calibration_facts(entry.spec)
    if family is not None and (layout := family.layout(precision)):
        facts.append(layout)
    facts += packing_facts(precision)
    key = f"{entry.slug}-{digest_of(facts)[:16]}"
    home = cache.root / "built" / key
    if not (home / MANIFEST).is_file():
        with cache.lock(key):
            # Another process may have built it while this one waited.
            if not (home / MANIFEST).is_file():
                cache.publish("built", key, partial(_build, entry, folder, precision))
    check_built(home)
    return home / _graph_file(precision), recipe


def _family(entry: ModelEntry, folder: Path) -> Family:
    """Return the model's family; ModelCorrupt where it is not the model of the catalogue."""
    config, spec = read_config(folder), entry.spec
    family = family_of(config)
    family.check(config)
    there, wanted = family.dim(config), spec.width
    positions = family.position_limit(config)
    if there != wanted or 0 < positions < spec.max_tokens:
        raise ModelCorrupt(
            f"{folder / 'config.json'} is of a model with {there} dimensions and {positions} "
            f"positions; {spec.name} should have {wanted} and {spec.max_tokens} or more: it is "
            "another model. Fetch it again, or give a directory's path as the model."
        )
    return family


def check_built(home: Path, *, recheck: bool = False) -> dict[str, str]:
    """Return the hashes of a built folder; ModelCorrupt where a file is not as it was built."""
    book = HashBook(home / MANIFEST, base=home)
    hashes = {path.name: book.require(path, recheck=recheck) for path in book.files()}
    if not {GRAPH_FILE, OPENVINO_FILE} & set(hashes):
        raise ModelCorrupt(
            f"{home / MANIFEST} is damaged: it does not name a graph. "
            "Run `memworker models pull NAME` to build the model again."
        )
    book.save()
    return hashes


def built_folders(entry: ModelEntry, cache: ModelCache) -> list[Path]:
    """Return every folder that was built for `entry`."""
    manifests = (cache.root / "built").glob(f"{entry.slug}-*/{MANIFEST}")
    # A slug may be the beginning of another model's.
    return sorted(m.parent for m in manifests if m.parent.name.rpartition("-")[0] == entry.slug)


def digest_of(facts: list[str]) -> str:
    """Return one hash for a list of facts; no two lists share one."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _recipe_digest(
    entry: ModelEntry, family: Family | None, hashes: dict[str, str], precision: Precision
) -> str:
    facts = [*_recipe(entry, family, precision, hashes), hashes[entry.weights]]
    facts += [hashes[shard] for shard in entry.shards]
    facts.append(hashes.get("config.json", ""))
    facts += [*head_facts(entry.spec), *(hashes[n] for n in weight_files(entry.spec.dense))]
    return digest_of(facts)


def _recipe(
    entry: ModelEntry, family: Family | None, precision: Precision, hashes: dict[str, str]
) -> list[str]:
    """Return what was decided; what was computed differs by processor in its last bits."""
    from memworker.models import graph_static
    from memworker.models.calibration import calibration_digest
    from memworker.models.rounding import PAIR_LIMIT

    if family is None:
        return [graph_static.recipe(entry.spec)]
    if precision is not Precision.INT8:
        return [family.recipe(precision)]
    calibration = [calibration_digest(), hashes[entry.tokenizer]]
    calibration += ["lowercase"] if entry.spec.lowercase else []
    return [family.recipe(precision), str(PAIR_LIMIT), *calibration]


def _own_tokenizer(entry: ModelEntry, hashes: dict[str, str]) -> list[str]:
    """Return what else a built folder holds: a static model's tokenizer, where that may change."""
    changes = entry.spec.static and entry.directory is not None
    return [hashes[entry.tokenizer]] if changes else []


def _graph_file(precision: Precision) -> str:
    return OPENVINO_FILE if precision is Precision.BF16 else GRAPH_FILE


def packing_facts(precision: Precision) -> list[str]:
    """Return what a built file is bound to beside its recipe: an engine, a processor."""
    if precision is Precision.BF16:
        # Packed when it is compiled, in each worker.
        return [version("openvino")]
    return [version("onnxruntime"), platform.machine(), _processor_features()]


def _processor_features() -> str:
    found = processor.features()
    if not found:
        return platform.processor()
    return " ".join(sorted(f for f in found if f.startswith(("avx", "amx", "asimd", "sv"))))


def _build(entry: ModelEntry, folder: Path, precision: Precision, draft: Path) -> None:
    if entry.spec.static:
        _write_static(entry, folder, draft)
        return
    if precision is Precision.BF16:
        _write_openvino(entry, folder, draft / OPENVINO_FILE)
        return
    if precision is Precision.INT8:
        _tell_int8(entry, folder)
    plain = draft / "plain"
    plain.mkdir()
    _write_graph(entry, folder, precision, plain / GRAPH_FILE)
    pack(plain / GRAPH_FILE, draft / GRAPH_FILE)
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        (plain / name).unlink()
    plain.rmdir()


def _tell_int8(entry: ModelEntry, folder: Path) -> None:
    """Say that it takes a while, where it does: nothing else is seen of it."""
    config = read_config(folder)
    seconds = family_of(config).flops_per_token(config) / 2 * _INT8_S_A_WEIGHT
    if seconds < _WORTH_TELLING_S:
        return
    told = f"{seconds:.0f} seconds" if seconds < _LONG_S else f"{seconds / 60:.0f} minutes"
    _log.info("%s is built in int8, once: about %s of one core", entry.spec.name, told)


_INT8_S_A_WEIGHT, _WORTH_TELLING_S, _LONG_S = 0.85e-6, 1.0, 100.0


def _write_static(entry: ModelEntry, folder: Path, draft: Path) -> None:
    from memworker.models.directory import is_model2vec
    from memworker.models.graph_static import build_static, faster_tokenizer, read_table

    tokenizer = folder / entry.tokenizer
    # model2vec leaves unknown tokens out of the mean, sentence-transformers counts them.
    counts = entry.directory is not None and not is_model2vec(folder)
    table = read_table(folder / entry.weights, tokenizer, unknown_counts=counts)
    width = entry.spec.dense[0].inputs if entry.spec.dense else entry.spec.dim
    if table.rows.shape[1] != width:
        raise ModelCorrupt(
            f"{folder / entry.weights} has rows of {table.rows.shape[1]}; {entry.spec.name} should "
            f"have {width} (hidden_dim in config.json). Fetch the model again."
        )
    build_static(table, read_head(entry.spec, folder), draft / GRAPH_FILE)
    faster = faster_tokenizer(tokenizer)
    (draft / TOKENIZER_FILE).write_text(faster or tokenizer.read_text("utf-8"), "utf-8")


def _write_graph(entry: ModelEntry, folder: Path, precision: Precision, path: Path) -> None:
    from memworker.models.calibration import calibration_ids, with_rare_tokens

    spec, config = entry.spec, read_config(folder)
    family, head = family_of(config), read_head(spec, folder)
    read = family.read(folder / entry.weights, config)
    if spec.pair_width:
        read, head = as_pairs(read, folder / entry.weights, config)
    if precision is Precision.FP32:
        family.write_fp32(read, head, path)
        return
    texts = calibration_ids(spec, folder / entry.tokenizer)
    family.write_int8(read, head, with_rare_tokens(texts, family.vocabulary(read)), path)


def _write_openvino(entry: ModelEntry, folder: Path, path: Path) -> None:
    """Write the graph in a process of its own, for this one must not load OpenVINO."""
    # What is wrong with the files is said here, in our own words.
    config, spec = read_config(folder), entry.spec
    family_of(config).read(folder / entry.weights, config)
    read_head(spec, folder)
    # Dense layers stay in fp32, in the worker; and the norm is that of what they give.
    head = Head(spec.pooling, spec.normalize and not spec.dense)
    job = pickle.dumps((folder / entry.weights, head, path)).hex()
    command = interpreters.command(_OPENVINO)
    try:
        interpreters.output(command, timeout_s=_PACK_TIMEOUT_S, given=job)
    except interpreters.Failed as failure:
        refuse_full_disk((folder / entry.weights).stat().st_size, path.parent)
        raise ModelUnsupported(
            f"openvino {version('openvino')} could not write the graph of {folder}: {failure}"
        ) from failure


def pack(plain: Path, packed: Path) -> None:
    """Save the graph with the weights as this processor's kernels want them.

    Left to each session, packing costs 40 MB of private memory a worker for
    MiniLM; switched off, 10 to 30 % of the speed on processors with AVX-512.
    It needs onnxruntime, which this process must not load.
    """
    command = interpreters.command(_PACK, str(plain), str(packed), WEIGHTS_FILE)
    try:
        interpreters.output(command, timeout_s=_PACK_TIMEOUT_S, OMP_NUM_THREADS="1")
    except interpreters.Failed as failure:
        refuse_full_disk(plain.with_name(WEIGHTS_FILE).stat().st_size, packed.parent)
        raise ModelUnsupported(
            f"onnxruntime {version('onnxruntime')} could not pack the weights of {plain.parent}:"
            f" {failure}"
        ) from failure


def refuse_full_disk(needed: int, folder: Path) -> None:
    """Raise ENOSPC where there is no room, whatever words onnxruntime has for it."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


_PACK = """
import sys
import onnxruntime as ort
source, target, weights = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = target
options.add_session_config_entry(
    "session.optimized_model_external_initializers_file_name", weights)
options.add_session_config_entry(
    "session.optimized_model_external_initializers_min_size_in_bytes", "4096")
options.add_session_config_entry(
    "session.save_external_prepacked_constant_initializers", "1")
ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
"""
_OPENVINO = """
import pickle, sys
from memworker.models.parts_bf16 import write
write(*pickle.loads(bytes.fromhex(sys.stdin.read())))
"""
