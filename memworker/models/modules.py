"""What a sentence-transformers folder says of itself: its modules, its settings and its prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from memworker.errors import ModelUnsupported
from memworker.models.head import DENSE_WEIGHTS
from memworker.models.spec import Activation, Dense, Pooling

MODULES_FILE = "modules.json"
_PROMPT_FILE = "config_sentence_transformers.json"
# By the kind of encoder, in the order that sentence-transformers looks.
_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_DEFAULT_POOLING = "1_Pooling"
_STATIC, _TRANSFORMER, _POOLING, _DENSE = "StaticEmbedding", "Transformer", "Pooling", "Dense"
# Dropout does nothing outside of training.
_KNOWN = {_STATIC, _TRANSFORMER, _POOLING, _DENSE, "Normalize", "Dropout"}


@dataclass(frozen=True, slots=True)
class Modules:
    """How a folder's token rows become vectors; `static_in` is the folder of a StaticEmbedding."""

    pooling: Pooling = Pooling.MEAN
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    static_in: str | None = None
    include_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Prompts:
    """What stands before queries and passages, and all prompts by their names."""

    query: str = ""
    passage: str = ""
    named: tuple[tuple[str, str], ...] = ()


def read_modules(path: Path) -> Modules:
    """Return what modules.json says, or without one: mean pooling, normalised.

    Raises ModelUnsupported, naming it, for what is not built.
    """
    _refuse_other_kind(path)
    listed = [_Module.of(path, place, m) for place, m in enumerate(_listed(path / MODULES_FILE))]
    if not listed:
        return Modules(pooling=_pooling(path, path / _DEFAULT_POOLING)[0])
    kinds = [module.kind for module in listed]
    _refuse_order(path, kinds)
    after = listed[1:]
    normalize = "Normalize" in kinds
    for module in after:
        if module.kind == "Normalize":
            _refuse_other_features(path / module.folder)
    dense = tuple(_dense(path, module.folder) for module in after if module.kind == _DENSE)
    if kinds[0] == _STATIC:
        return Modules(dense=dense, normalize=normalize, static_in=listed[0].folder)
    if listed[0].folder:
        raise ModelUnsupported(
            f"{path}/{MODULES_FILE} has its Transformer in {listed[0].folder}; memworker looks for"
            f" it in the folder itself. Load and save the model once with sentence-transformers."
        )
    _refuse_other_outputs(path)
    pooling, include_prompt = _pooling(path, path / listed[1].folder)
    return Modules(pooling, dense, normalize, include_prompt=include_prompt)


def _refuse_other_kind(path: Path) -> None:
    """Refuse what sentence-transformers says is no model of one vector a text."""
    kind = read_json(path / _PROMPT_FILE).get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ModelUnsupported(
            f"{path / _PROMPT_FILE} says that the model is a {kind}; memworker runs those that "
            "give one vector a text (SentenceTransformer)."
        )


def _refuse_other_features(folder: Path) -> None:
    """Refuse a module that works on something else than the vector of a text."""
    config = read_json(folder / "config.json")
    keys = {config.get(key) or "sentence_embedding" for key in _FEATURES}
    if keys != {"sentence_embedding"}:
        raise ModelUnsupported(
            f"{folder / 'config.json'} is a module on {' and '.join(sorted(map(str, keys)))}; "
            "memworker applies those of the pooled vector, one after another."
        )


def _refuse_other_outputs(path: Path) -> None:
    """Refuse a Transformer whose Pooling gets something else than its last hidden states."""
    settings = transformer_settings(path)
    modes = settings.get("modality_config")
    text = modes.get("text") if isinstance(modes, dict) else None
    said = {
        "transformer_task": (settings.get("transformer_task"), "feature-extraction"),
        "module_output_name": (settings.get("module_output_name"), "token_embeddings"),
        "method_output_name": (
            text.get("method_output_name") if isinstance(text, dict) else None,
            "last_hidden_state",
        ),
    }
    for key, (found, known) in said.items():
        if found not in (None, known):
            raise ModelUnsupported(
                f"{path}: its Transformer has {key} {found!r}; memworker pools the last hidden "
                f"states ({known!r}). Export the whole pipeline to one ONNX file."
            )


def begins_static(path: Path) -> bool:
    """Say whether a folder's first module is a StaticEmbedding, whatever else is there or not."""
    kinds = [str(module.get("type", "")) for module in _listed(path / MODULES_FILE)[:1]]
    return any(kind.rpartition(".")[2] == _STATIC for kind in kinds)


def transformer_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a folder's Transformer, {} where there are none."""
    found = next((path / name for name in _SETTINGS if (path / name).is_file()), None)
    return read_json(found) if found else {}


def read_prompts(path: Path) -> Prompts | None:
    """Return a folder's prompts as sentence-transformers applies them, None where it has none.

    A query gets the prompt "query", a passage the first that is not empty of "document",
    "passage" and "corpus"; where there is none of that name, the default one. Raises
    ModelUnsupported for a default that is not there.
    """
    settings = read_json(path / _PROMPT_FILE)
    prompts = settings.get("prompts")
    if not isinstance(prompts, dict):
        return None
    named = {str(name): str(text or "") for name, text in prompts.items()}
    # sentence-transformers writes empty ones where nobody said anything.
    if not any(named.values()):
        return None
    default = settings.get("default_prompt_name")
    if default is not None and not (isinstance(default, str) and default in named):
        raise ModelUnsupported(
            f"{path / _PROMPT_FILE} names the prompt {default!r} as its default, and has only"
            f" {', '.join(map(repr, named))}."
        )
    otherwise = named.get(default, "") if default is not None else ""
    query, passage = (_first(named, names, otherwise) for names in (_QUERY, _PASSAGE))
    return Prompts(query, passage, tuple(named.items()))


# The first are sentence-transformers' own names; the others are found in models made without it.
_QUERY = ("query", "search_query", "retrieval.query", "retrieval_query")
_PASSAGE = (
    *("document", "passage", "corpus"),
    *("search_document", "retrieval.passage", "retrieval_document"),
)


def similarity(path: Path) -> str:
    """Return by what a model's vectors are to be compared, "" where it does not say."""
    return str(read_json(path / _PROMPT_FILE).get("similarity_fn_name") or "")


def _first(named: dict[str, str], names: tuple[str, ...], otherwise: str) -> str:
    there = [named[name] for name in names if name in named]
    return next(filter(None, there), "") if there else otherwise


@dataclass(frozen=True, slots=True)
class _Module:
    kind: str
    folder: str

    @classmethod
    def of(cls, path: Path, place: int, module: dict[str, Any]) -> _Module:
        named = str(module.get("type", ""))
        kind = named.rpartition(".")[2]
        if kind not in _KNOWN or not named.startswith("sentence_transformers."):
            raise ModelUnsupported(
                f"{path}/{MODULES_FILE} has the module {named or '(no type)'}; memworker knows "
                f"{', '.join(sorted(_KNOWN))} of sentence-transformers. "
                "Export the whole pipeline to one ONNX file."
            )
        folder = str(module.get("path", "" if place == 0 else f"{place}_{kind}"))
        parts = PurePosixPath(folder)
        if parts.is_absolute() or ".." in parts.parts or "\\" in folder:
            raise ModelUnsupported(
                f"{path}/{MODULES_FILE} has a module in {folder!r}, outside of the model's folder."
            )
        return cls(kind, "" if folder == "." else folder)


def _refuse_order(path: Path, kinds: list[str]) -> None:
    """Refuse what is not an encoder, its pooling, dense layers and then a norm."""
    begins = [_STATIC] if kinds[0] == _STATIC else [_TRANSFORMER, _POOLING]
    rest = [kind for kind in kinds[len(begins) :] if kind != "Dropout"]
    dense = rest.count(_DENSE)
    if kinds[: len(begins)] != begins or rest[:dense] != [_DENSE] * dense or _twice(rest[dense:]):
        raise ModelUnsupported(
            f"{path}/{MODULES_FILE} has {', '.join(kinds)}, in this order; memworker builds "
            "Transformer, Pooling, any Dense and then Normalize, or StaticEmbedding in place of "
            "the first two. Export the whole pipeline to one ONNX file."
        )


def _twice(rest: list[str]) -> bool:
    return any(kind != "Normalize" for kind in rest)


def _pooling(path: Path, folder: Path) -> tuple[Pooling, bool]:
    """Return the pooling, and whether a prompt's tokens count in it."""
    config = read_json(folder / "config.json")
    on = [name for key, name in _LEGACY.items() if config.get(key) is True]
    named = config.get("pooling_mode", on or "mean")
    modes = named if isinstance(named, list) else [named]
    if len(modes) == 1 and isinstance(modes[0], str) and modes[0] in _MODES:
        return _MODES[modes[0]], config.get("include_prompt") is not False
    raise ModelUnsupported(
        f"{folder / 'config.json'} asks for {' and '.join(map(_told, modes))} pooling; memworker"
        f" does one of {', '.join(map(_told, _MODES))}. Export the whole pipeline to one ONNX file."
    )


_MODES = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _told(mode: object) -> str:
    legacy = {name: key.removeprefix("pooling_mode_") for key, name in _LEGACY.items()}
    return legacy.get(str(mode), str(mode))


def _dense(path: Path, name: str) -> Dense:
    folder = path / name
    _refuse_other_features(folder)
    config = read_json(folder / "config.json")
    if config.get("use_residual"):
        raise ModelUnsupported(
            f"{folder / 'config.json'} is a Dense layer with a residual (use_residual); memworker"
            " applies those without. Export the whole pipeline to one ONNX file."
        )
    if not (folder / DENSE_WEIGHTS).is_file():
        raise ModelUnsupported(
            f"{folder} has no {DENSE_WEIGHTS}. Pickled weights (pytorch_model.bin) are never "
            "loaded; save the model as safetensors: "
            'SentenceTransformer("DIR").save_pretrained("NEW_DIR")'
        )
    try:
        inputs, outputs = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelUnsupported(f"{folder / 'config.json'} lacks {error} of the layer.") from error
    return Dense(
        folder=name,
        inputs=inputs,
        outputs=outputs,
        bias=config.get("bias") is not False,
        activation=_activation(folder, config),
    )


_FEATURES = ("module_input_name", "module_output_name")


def _activation(folder: Path, config: dict[str, Any]) -> Activation:
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = named.rpartition(".")[2].lower()
    if named.startswith("torch.") and kind in list(Activation):
        return Activation(kind)
    raise ModelUnsupported(
        f"{folder / 'config.json'} has the activation {named}; memworker does "
        f"{', '.join(Activation)} of torch.nn."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, {} where there is none; ModelUnsupported where torn."""
    value = _read(path, {})
    if not isinstance(value, dict):
        raise ModelUnsupported(f"{path} is no JSON object. Fetch the model again.")
    return value


def _listed(path: Path) -> list[dict[str, Any]]:
    value = _read(path, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelUnsupported(f"{path} is no JSON list of objects. Fetch the model again.")
    return value


def _read(path: Path, absent: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return absent
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"{path} cannot be read: {error}. Fetch the model again.") from error
