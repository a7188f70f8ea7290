"""Static models: a table of token vectors, their mean, L2. Tokenising is nearly all the work.

::

    input_ids, attention_mask  int64[n, tokens]
      └ Gather (fp16 rows stay fp16 on disk) ─ Cast ─ masked mean ─ L2 ─ embedding  float32[n, dim]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import ModelCorrupt
from memworker.models import parts
from memworker.models.head import Head
from memworker.models.onnx_file import GraphWriter
from memworker.models.spec import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE, _COUNTED_RECIPE = "static-mean-1", "static-mean-2"
_OURS, _MODEL2VEC = "embedding.weight", "embeddings"


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The vector of each token id, ``[tokens, dim]``; the id of tokens that do not count."""

    rows: NDArray[Any]
    unknown: int | None = None


def recipe(spec: ModelSpec) -> str:
    """Name how a model's vectors are made: of a direction alone, or also of a length."""
    return RECIPE if _direction_only(spec.normalize, bool(spec.dense)) else _COUNTED_RECIPE


def _direction_only(normalize: bool, dense: bool) -> bool:
    return normalize and not dense


def build_static(table: TokenTable, head: Head, path: Path) -> None:
    """Write the graph of a table, int8, float16 or float32, to `path`."""
    graph = GraphWriter("memworker-static")
    rows = graph.op("Gather", graph.weight("words", table.rows), "input_ids", name="word_rows")
    # A graph has one type for both; a Cast of float32 is nothing.
    rows = graph.op("Cast", rows, name="rows", to=parts.FLOAT)
    mask = "attention_mask"
    if table.unknown is not None and not _direction_only(head.normalize, bool(head.layers)):
        unknown = graph.op("Equal", "input_ids", parts.ints(graph, table.unknown), name="unknown")
        known = graph.op("Not", unknown, name="known")
        counting = graph.op("Cast", known, name="counting", to=parts.INT64)
        mask = graph.op("Mul", mask, counting, name="counted_mask")
    sums = graph.op("MatMul", parts.mask_row(graph, mask), rows, name="masked_sum")
    parts.finish(graph, parts.mean(graph, sums), head)
    width = head.width(table.rows.shape[1])
    graph.save(path, parts.encoder_inputs(), parts.encoder_outputs(width))


def read_table(weights: Path, tokenizer: Path, *, unknown_counts: bool = False) -> TokenTable:
    """Return the vector of each token id.

    Takes the tensor of wordllama and sentence-transformers, and model2vec's, whose shared rows
    and weights are spread to one row a token and whose unknown token counts as nothing, unless
    `unknown_counts`. Raises ModelCorrupt where the file holds neither.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, Any] = load_file(weights)
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise ModelCorrupt(f"{weights} cannot be read: {error}. Fetch the model again.") from error
    name = next((n for n in (_OURS, _MODEL2VEC) if n in tensors), "")
    if not name or tensors[name].ndim != 2:
        raise ModelCorrupt(f"{weights} holds no table of token vectors: it has {sorted(tensors)}.")
    try:
        rows = _narrow(tensors[name] if name == _OURS else _spread(tensors))
    except (IndexError, ValueError) as error:
        raise ModelCorrupt(
            f"{weights} has a mapping or weights that do not fit its rows: {error}."
            " Fetch the model again."
        ) from error
    last, unknown = _ids_of(tokenizer)
    if last >= len(rows):
        # A worker would fail on a text.
        raise ModelCorrupt(
            f"{weights} has {len(rows)} rows, and {tokenizer} gives ids up to {last}: "
            "they are not of one model."
        )
    if unknown is None or unknown_counts or name == _OURS:
        return TokenTable(rows)
    rows = rows.copy()
    # A row of zeros leaves the direction of the mean as if the token were not there.
    rows[unknown] = 0
    return TokenTable(rows, unknown)


def _spread(tensors: dict[str, Any]) -> NDArray[Any]:
    import numpy as np

    rows: NDArray[Any] = tensors[_MODEL2VEC]
    if "mapping" in tensors:
        rows = np.take(rows, tensors["mapping"].astype(np.int64), axis=0)
    if "weights" in tensors:
        # Whole numbers times weights are none.
        kind = rows.dtype if rows.dtype.kind == "f" else np.float32
        rows = (rows * tensors["weights"][:, None]).astype(kind)
    return rows


def _narrow(rows: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return rows.astype(np.float32) if rows.dtype == np.float64 else rows


def _ids_of(tokenizer: Path) -> tuple[int, int | None]:
    """Return the largest id that a tokenizer gives, and that of its unknown token."""
    try:
        described = json.loads(tokenizer.read_bytes())
        model, added = described["model"], _added(described)
        vocabulary = model.get("vocab") or {}
        unigram = not isinstance(vocabulary, dict)
        ids = [len(vocabulary) - 1] if unigram else list(map(int, vocabulary.values()))
        if model.get("type") == "Unigram":
            unknown = model.get("unk_id")
        else:
            named = model.get("unk_token") or ""
            unknown = added.get(named, None if unigram else vocabulary.get(named))
        found = None if unknown is None else int(unknown)
        return max([*ids, *added.values(), found or 0], default=0), found
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelCorrupt(f"{tokenizer} cannot be used: {error!r}. Fetch it again.") from error


def _added(described: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: int(token["id"]) for token in described.get("added_tokens") or []}


def faster_tokenizer(path: Path) -> str:
    """Return a tokenizer.json that gives the same ids as `path` in less time, or "".

    Llama's normaliser replaces each space through a regular expression; Metaspace
    does it by plain search: 9 % more texts a second. The template of special
    tokens, never used here, costs a copy of every encoding.
    """
    settings = json.loads(path.read_bytes())
    if settings.get("normalizer") != _LLAMA_NORMALIZER or settings.get("pre_tokenizer"):
        return ""
    settings["normalizer"] = _LLAMA_NORMALIZER["normalizers"][0]
    settings["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "never",
        "split": False,
    }
    settings["post_processor"] = None
    return json.dumps(settings, ensure_ascii=False)


_LLAMA_NORMALIZER: dict[str, Any] = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
