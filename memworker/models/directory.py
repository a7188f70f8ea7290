"""Reads what a local directory in Hugging Face layout says of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memworker.errors import ModelUnsupported, UnknownModel
from memworker.models.prefixes import prefixes_of
from memworker.models.spec import ModelEntry, ModelFile, ModelSpec, Pooling

SAFETENSORS = "model.safetensors"
ONNX_PATHS = ("model.onnx", "onnx/model.onnx", "model_optimized.onnx", "onnx/model_optimized.onnx")


def looks_like_model(path: Path) -> bool:
    """Say whether `path` is a directory that might hold a model."""
    return path.is_dir() and any((path / name).is_file() for name in (*ONNX_PATHS, "config.json"))


def read_directory(path: Path) -> ModelEntry:
    """Return the entry of a directory that holds safetensors or an ONNX file.

    Safetensors are preferred where memworker can build from them: the fused
    graph is the faster one. Raises UnknownModel where it is no directory and
    ModelUnsupported where it holds nothing that can be run.
    """
    if not path.is_dir():
        raise UnknownModel(f"{path} is no directory. Give a directory in Hugging Face layout.")
    path = path.resolve()
    weights = _weights(path)
    return ModelEntry(
        spec=_spec(path),
        weights=weights,
        files=tuple(ModelFile(name, required=False) for name in (weights, *_READ)),
        directory=path,
    )


def _weights(path: Path) -> str:
    if not (path / "tokenizer.json").is_file():
        raise ModelUnsupported(
            f"{path} has no tokenizer.json. Save the model's fast tokenizer into it "
            "(transformers: AutoTokenizer.from_pretrained(...).save_pretrained(DIR))."
        )
    onnx = next((name for name in ONNX_PATHS if (path / name).is_file()), "")
    has_safetensors = (path / SAFETENSORS).is_file()
    if has_safetensors and (not onnx or _can_build(path)):
        return SAFETENSORS
    if onnx:
        return onnx
    there = ", ".join(sorted(child.name for child in path.iterdir())[:12])
    raise ModelUnsupported(
        f"{path} holds neither {SAFETENSORS} nor {' nor '.join(ONNX_PATHS[:2])} (it has {there}). "
        "Pickled weights are never loaded; save the model as safetensors or export it to ONNX."
    )


def _can_build(path: Path) -> bool:
    from memworker.models.weights import bert_shape

    config = read_json(path / "config.json")
    try:
        _ = config.get("model_type") == _MODEL2VEC or bert_shape(config)
    except ModelUnsupported:
        return False
    return True


def _spec(path: Path) -> ModelSpec:
    config = read_json(path / "config.json")
    if config.get("model_type") == _MODEL2VEC:
        return _static_spec(path, config)
    pooling, normalize = _pooling(path)
    limit, positions = token_limits(path)
    query, passage = _prefixes(path, config)
    return ModelSpec(
        name=path.name,
        dim=int(config.get("hidden_size") or config.get("dim") or 0),
        pooling=pooling,
        normalize=normalize,
        max_tokens=limit,
        position_limit=positions,
        query_prefix=query,
        passage_prefix=passage,
        description=f"local directory {path}",
    )


def _static_spec(path: Path, config: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        name=path.name,
        dim=int(config.get("hidden_dim") or 0),
        pooling=Pooling.MEAN,
        normalize=bool(config.get("normalize", True)),
        max_tokens=STATIC_MAX_TOKENS,
        add_special_tokens=False,
        description=f"local directory {path}",
        static=True,
    )


_MODEL2VEC = "model2vec"
# What model2vec truncates at unless told otherwise.
STATIC_MAX_TOKENS = 512
_POOLING_FILE = "1_Pooling/config.json"
_BERT_FILE = "sentence_bert_config.json"
_PROMPT_FILE = "config_sentence_transformers.json"
_READ = ("tokenizer.json", "config.json")


def _pooling(path: Path) -> tuple[Pooling, bool]:
    """Return pooling and whether to normalise; without modules.json: mean, and yes."""
    modules = [str(module.get("type", "")) for module in _read_list(path / "modules.json")]
    kinds = [kind.rpartition(".")[2] for kind in modules]
    if extra := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelUnsupported(
            f"{path}/modules.json has {', '.join(sorted(extra))} after the transformer; memworker "
            "knows Pooling and Normalize only. Export the whole pipeline to one ONNX file."
        )
    return _pooling_mode(path), not kinds or "Normalize" in kinds


def _pooling_mode(path: Path) -> Pooling:
    config = read_json(path / _POOLING_FILE)
    on = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
    modes = on & {"cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"}
    modes |= on & {"weightedmean_tokens", "lasttoken"}
    if isinstance(named := config.get("pooling_mode"), str):
        modes = {_MODE_NAMES.get(named, f"{named}_tokens")}
    if modes == {"cls_token"}:
        return Pooling.CLS
    if modes == {"lasttoken"}:
        return Pooling.LAST
    if modes in ({"mean_tokens"}, set()):
        return Pooling.MEAN
    raise ModelUnsupported(
        f"{path / _POOLING_FILE} asks for {' and '.join(sorted(modes))} pooling; "
        "memworker does mean_tokens, cls_token or lasttoken."
    )


_MODE_NAMES = {"cls": "cls_token", "lasttoken": "lasttoken"}


def token_limits(path: Path) -> tuple[int, int]:
    """Return the advised token limit and the size of the position table (0: not known).

    The advice is sentence-transformers' own, else the tokenizer's, else the table's.
    """
    config = read_json(path / "config.json")
    positions = _count(config.get("max_position_embeddings"))
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        # These begin to count after the padding token's own position.
        positions = max(positions - 2, 0)
    tokenizer = read_json(path / "tokenizer_config.json")
    lengths = [_count(tokenizer.get(key)) for key in ("model_max_length", "max_length")]
    advised = _count(read_json(path / _BERT_FILE).get("max_seq_length"))
    limit = advised or min(filter(None, lengths), default=0) or positions or 512
    return min(limit, positions or limit), positions


def _count(value: Any) -> int:
    # transformers writes 1e30 where it knows no limit.
    return value if isinstance(value, int) and 0 < value < 1_000_000 else 0


def _prefixes(path: Path, config: dict[str, Any]) -> tuple[str, str]:
    prompts = read_json(path / _PROMPT_FILE).get("prompts")
    if isinstance(prompts, dict) and prompts:
        passage = prompts.get("passage") or prompts.get("document") or ""
        return str(prompts.get("query") or ""), str(passage)
    by_origin = prefixes_of(str(config.get("_name_or_path", "")))
    return by_origin if any(by_origin) else prefixes_of(path.name)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, {} where there is none; ModelUnsupported where torn."""
    value = _read(path, {})
    if not isinstance(value, dict):
        raise ModelUnsupported(f"{path} is no JSON object. Fetch the model again.")
    return value


def _read_list(path: Path) -> list[dict[str, Any]]:
    value = _read(path, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelUnsupported(f"{path} is no JSON list of objects. Fetch the model again.")
    return value


def _read(path: Path, absent: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return absent
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"{path} cannot be read: {error}. Fetch the model again.") from error
