"""Reads what a local directory in Hugging Face layout says of its model."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from memworker.errors import ModelCorrupt, ModelUnsupported, UnknownModel
from memworker.models.family import Config, family_of, known_family
from memworker.models.head import weight_files
from memworker.models.modules import (
    MODULES_FILE,
    Modules,
    Prompts,
    begins_static,
    read_json,
    read_modules,
    read_prompts,
    similarity,
    transformer_settings,
)
from memworker.models.prefixes import may_be_cut, prefixes_of
from memworker.models.spec import ModelEntry, ModelFile, ModelSpec, Pooling
from memworker.models.tensors import INDEX_SUFFIX, shards, width_of

SAFETENSORS = "model.safetensors"
SHARDED = f"model{INDEX_SUFFIX}"
ONNX_PATHS = ("model.onnx", "onnx/model.onnx", "model_optimized.onnx", "onnx/model_optimized.onnx")


def looks_like_model(path: Path) -> bool:
    """Say whether `path` is a directory that might hold a model."""
    names = (*ONNX_PATHS, "config.json", MODULES_FILE)
    return path.is_dir() and any((path / name).is_file() for name in names)


def is_whole(path: Path) -> bool:
    """Say whether a folder has weights that can be run and a tokenizer, not only parts."""
    try:
        return all(file.exists() for file in map(path.joinpath, _needed(read_directory(path))))
    except (ModelUnsupported, ModelCorrupt):
        return False


def _needed(entry: ModelEntry) -> list[str]:
    return [entry.weights, entry.tokenizer, *weight_files(entry.spec.dense)]


def builds_from(path: Path) -> bool:
    """Say whether a folder describes a model that is built from safetensors."""
    return is_model2vec(path) or begins_static(path) or _can_build(path)


def read_directory(path: Path, name: str = "") -> ModelEntry:
    """Return the entry of a directory that holds safetensors or an ONNX file, under its `name`.

    Safetensors are preferred where memworker can build from them: the fused
    graph is the faster one. Raises UnknownModel where it is no directory and
    ModelUnsupported where it holds nothing that can be run.
    """
    if not path.is_dir():
        raise UnknownModel(f"{path} is no directory. Give a directory in Hugging Face layout.")
    path = path.resolve()
    name = name or path.name
    if (static := _static_entry(path, name)) is not None:
        return static
    weights = _weights(path)
    own = [file.name for file in shards(path / weights)] if weights == SHARDED else []
    spec = _spec(path, name)
    files = (weights, *own, *_READ, *weight_files(spec.dense))
    return ModelEntry(
        spec=spec,
        weights=weights,
        files=tuple(ModelFile(name, required=False) for name in files),
        directory=path,
    )


def _weights(path: Path) -> str:
    _refuse_adapter(path)
    _refuse_without_tokenizer(path)
    onnx = next((name for name in ONNX_PATHS if (path / name).is_file()), "")
    built_from = next((name for name in (SAFETENSORS, SHARDED) if (path / name).is_file()), "")
    if built_from and (not onnx or _can_build(path)):
        return built_from
    if onnx:
        return onnx
    there = ", ".join(sorted(child.name for child in path.iterdir())[:12])
    raise ModelUnsupported(
        f"{path} holds neither {SAFETENSORS} nor {' nor '.join(ONNX_PATHS[:2])} (it has {there}). "
        "Pickled weights are never loaded; save the model as safetensors or export it to ONNX."
    )


def _refuse_adapter(path: Path) -> None:
    if (path / "adapter_config.json").is_file():
        raise ModelUnsupported(
            f"{path} is an adapter (adapter_config.json), changes to another model's weights. Merge"
            " both into one (peft: merge_and_unload()), and save that as safetensors."
        )


def _refuse_without_tokenizer(path: Path) -> None:
    if (path / "tokenizer.json").is_file():
        return
    slow = [name for name in _SLOW_TOKENIZERS if (path / name).is_file()]
    there = f"only {' and '.join(slow)}, which memworker does not read" if slow else "none"
    raise ModelUnsupported(
        f"{path} has no tokenizer.json ({there}). Save the model's fast tokenizer into it "
        "(transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))."
    )


def _can_build(path: Path) -> bool:
    config = read_json(path / "config.json")
    try:
        family_of(config).check(config)
    except (ModelUnsupported, ModelCorrupt):
        return False
    return True


def _spec(path: Path, name: str) -> ModelSpec:
    config = read_json(path / "config.json")
    modules = read_modules(path)
    limit, positions = token_limits(path)
    prompts = _prompts(path, name, config)
    query, passage = prompts.query, prompts.passage
    _refuse_prompt_left_out(path, modules, query, passage)
    return ModelSpec(
        name=name,
        dim=_dim(path, modules, _hidden(config)),
        pooling=modules.pooling,
        normalize=modules.normalize,
        max_tokens=limit,
        position_limit=positions,
        query_prefix=query,
        passage_prefix=passage,
        description=f"local directory {path}",
        lowercase=bool(transformer_settings(path).get("do_lower_case")),
        dense=modules.dense,
        matryoshka=_cuttable(path, name, config),
        similarity=similarity(path),
        prompts=tuple(name for name, _ in prompts.named),
    )


def _dim(path: Path, modules: Modules, hidden: int) -> int:
    """Return what comes out behind the dense layers, each of which must take what it is given."""
    width = hidden
    for layer in modules.dense:
        if width not in (0, layer.inputs):
            raise ModelUnsupported(
                f"{path / layer.folder} takes {layer.inputs} numbers, and gets {width}: "
                "its config.json is of another model."
            )
        width = layer.outputs
    return width


def _refuse_prompt_left_out(path: Path, modules: Modules, *prompts: str) -> None:
    if any(prompts) and not modules.include_prompt:
        raise ModelUnsupported(
            f"{path}: its pooling leaves the tokens of prompts out (include_prompt is false), and"
            f" it has prompts; memworker pools all tokens."
        )


def _hidden(config: Config) -> int:
    family = known_family(config)
    known = family.dim(config) if family is not None else 0
    return known or _count(config.get("hidden_size")) or _count(config.get("dim"))


def _static_entry(path: Path, name: str) -> ModelEntry | None:
    """Return the entry of a table of token vectors, of model2vec or sentence-transformers."""
    config = read_json(path / "config.json")
    if is_model2vec(path):
        folder, modules = "", Modules(normalize=bool(config.get("normalize", False)))
        # What model2vec truncates at unless told otherwise; null is no limit.
        limit = config.get("max_length", 512)
    else:
        modules = read_modules(path)
        if modules.static_in is None:
            return None
        folder, limit = modules.static_in, None
    weights, tokenizer = (str(PurePosixPath(folder, n)) for n in (SAFETENSORS, "tokenizer.json"))
    _refuse_without_table(path, weights)
    _refuse_without_tokenizer(path / folder)
    prompts = read_prompts(path) or Prompts()
    spec = ModelSpec(
        name=name,
        dim=_dim(path, modules, _table_width(path / weights, config)),
        pooling=Pooling.MEAN,
        normalize=modules.normalize,
        max_tokens=_count(limit) or STATIC_MAX_TOKENS,
        query_prefix=prompts.query,
        passage_prefix=prompts.passage,
        add_special_tokens=False,
        description=f"local directory {path}",
        static=True,
        dense=modules.dense,
        matryoshka=_cuttable(path, name, config),
        similarity=similarity(path),
        prompts=tuple(name for name, _ in prompts.named),
    )
    files = (weights, tokenizer, "config.json", *weight_files(spec.dense))
    return ModelEntry(
        spec=spec,
        weights=weights,
        files=tuple(ModelFile(name, required=False) for name in files),
        directory=path,
        tokenizer=tokenizer,
    )


def is_model2vec(path: Path) -> bool:
    """Say whether a folder's static model is one of model2vec's own."""
    return read_json(path / "config.json").get("model_type") == _MODEL2VEC


def _refuse_without_table(path: Path, weights: str) -> None:
    if not (path / weights).is_file():
        raise ModelUnsupported(
            f"{path} has no {weights}. Pickled weights (pytorch_model.bin) are never loaded; save "
            'the model as safetensors: SentenceTransformer("DIR").save_pretrained("NEW_DIR")'
        )


def _table_width(weights: Path, config: dict[str, Any]) -> int:
    """Return how wide the table is said to be; what cut it (model2vec) may not have said so."""
    said = _count(config.get("hidden_dim"))
    if said and "embedding_dtype" not in config:
        return said
    return width_of(weights, ("embedding.weight", "embeddings")) or said


def _cuttable(path: Path, name: str, config: dict[str, Any]) -> bool:
    """Say whether its first numbers suffice: by its settings, its name, or how it was trained."""
    if config.get("is_matryoshka") or config.get("matryoshka_dimensions"):
        return True
    names = (str(config.get("_name_or_path", "")), name)
    if any(map(may_be_cut, names)):
        return True
    try:
        with (path / "README.md").open("rb") as card:
            return b"MatryoshkaLoss" in card.read(_CARD_BYTES)
    except OSError:
        return False


_CARD_BYTES = 1 << 16


_MODEL2VEC = "model2vec"
# Where a model has no limit of its own: what a text may cost in memory must have one.
STATIC_MAX_TOKENS = 8192
_READ = ("tokenizer.json", "config.json")
_SLOW_TOKENIZERS = (
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


def token_limits(path: Path) -> tuple[int, int]:
    """Return the advised token limit and the size of the position table (0: not known).

    The advice is sentence-transformers' own, else the tokenizer's, else the table's.
    """
    config = read_json(path / "config.json")
    family = known_family(config)
    if family is not None:
        positions = family.position_limit(config)
    else:
        positions = _count(config.get("max_position_embeddings"))
    tokenizer = read_json(path / "tokenizer_config.json")
    lengths = [_count(tokenizer.get(key)) for key in ("model_max_length", "max_length")]
    advised = _count(transformer_settings(path).get("max_seq_length"))
    limit = advised or min(filter(None, lengths), default=0) or positions or 512
    return min(limit, positions or limit), positions


def _count(value: Any) -> int:
    # transformers writes 1e30 where it knows no limit.
    return value if isinstance(value, int) and 0 < value < 1_000_000 else 0


def _prompts(path: Path, name: str, config: dict[str, Any]) -> Prompts:
    if (prompts := read_prompts(path)) is not None:
        return prompts
    by_origin = prefixes_of(str(config.get("_name_or_path", "")))
    return Prompts(*(by_origin if any(by_origin) else prefixes_of(name)))
