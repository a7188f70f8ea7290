"""wordllama and model2vec themselves, on the weights that a static pool of ours runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.processes import Outcome, Run, Workload


@contextmanager
def wordllama(load: Workload) -> Iterator[Run]:
    """Open wordllama's own inference; it pads what it embeds together."""
    from wordllama.inference import WordLlamaInference  # type: ignore[import-not-found]

    table, tokenizer = _weights(load)
    model = WordLlamaInference(table.astype("float32"), tokenizer)
    yield lambda texts: Outcome(model.embed(texts, norm=True))


@contextmanager
def model2vec(load: Workload) -> Iterator[Run]:
    """Open model2vec's StaticModel; it starts processes of its own for many texts."""
    from model2vec import StaticModel  # type: ignore[import-not-found]

    table, tokenizer = _weights(load)
    model = StaticModel(table, tokenizer, normalize=True, max_length=load.max_tokens)
    yield lambda texts: Outcome(model.encode(texts))


def _weights(load: Workload) -> tuple[Any, Any]:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    (table,) = load_file(Path(load.model_dir) / "model.safetensors").values()
    tokenizer = Tokenizer.from_file(f"{load.model_dir}/tokenizer.json")
    return table, tokenizer
