"""Static models: a table of token vectors, their mean, L2. Tokenising is nearly all the work.

::

    input_ids, attention_mask  int64[n, tokens]
      └ Gather (fp16 rows stay fp16 on disk) ─ Cast ─ masked mean ─ L2 ─ embedding  float32[n, dim]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import ModelCorrupt
from memworker.models import parts
from memworker.models.head import Head
from memworker.models.onnx_file import GraphWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "static-mean-1"
_WORDLLAMA, _MODEL2VEC = "embedding.weight", "embeddings"


def build_static(table: NDArray[Any], head: Head, path: Path) -> None:
    """Write the graph of a table ``[tokens, dim]``, float16 or float32, to `path`."""
    graph = GraphWriter("memworker-static")
    rows = graph.op("Gather", graph.weight("words", table), "input_ids", name="word_rows")
    # A graph has one type for both; a Cast of float32 is nothing.
    rows = graph.op("Cast", rows, name="rows", to=parts.FLOAT)
    sums = graph.op("MatMul", parts.mask_row(graph), rows, name="masked_sum")
    parts.finish(graph, parts.mean(graph, sums), head)
    width = head.width(table.shape[1])
    graph.save(path, parts.encoder_inputs(), parts.encoder_outputs(width))


def read_table(weights: Path, tokenizer: Path) -> NDArray[Any]:
    """Return the vector of each token id, float16 or float32 ``[tokens, dim]``.

    Takes wordllama's tensor and model2vec's, whose shared rows and weights are
    spread to one row a token and whose unknown token counts as nothing.
    Raises ModelCorrupt where the file holds neither.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, Any] = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ModelCorrupt(f"{weights} cannot be read: {error}. Fetch the model again.") from error
    name = next((n for n in (_WORDLLAMA, _MODEL2VEC) if n in tensors), "")
    if not name or tensors[name].ndim != 2:
        raise ModelCorrupt(f"{weights} holds no table of token vectors: it has {sorted(tensors)}.")
    table = tensors[name]
    return _spread(tensors, tokenizer) if name == _MODEL2VEC else table


def _spread(tensors: dict[str, Any], tokenizer: Path) -> NDArray[Any]:
    table: NDArray[Any] = tensors[_MODEL2VEC]
    if "mapping" in tensors:
        table = table[tensors["mapping"]]
    if "weights" in tensors:
        table = (table * tensors["weights"][:, None]).astype(table.dtype)
    unknown = _unknown_token(json.loads(tokenizer.read_bytes())["model"])
    if unknown is not None:
        table = table.copy()
        # A row of zeros leaves the direction of the mean as if the token were not there.
        table[unknown] = 0
    return table


def _unknown_token(model: dict[str, Any]) -> int | None:
    if model.get("type") == "Unigram":
        return model.get("unk_id")
    vocabulary: dict[str, int] = model.get("vocab") or {}
    return vocabulary.get(model.get("unk_token") or "")


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
