"""sentence-transformers on each of its engines, at the batch that is best here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.processes import Outcome, Run, Workload

# Tried on the first texts; the quickest is kept. The library's own default is 32.
BATCHES = (8, 16, 32, 64)
TRIED_TEXTS = 512
CALIBRATION_TEXTS = 300
FILES = {"fp32": "openvino_model.xml", "int8": "openvino_model_qint8_quantized.xml"}


@contextmanager
def sentence_transformers(
    load: Workload, backend: str = "torch", precision: str = "fp32"
) -> Iterator[Run]:
    """Open it on "torch", "onnx" (optimised to O3) or "openvino", which chooses bf16 by itself."""
    given: dict[str, Any] = {}
    folder = saved(load)
    if backend == "openvino":
        given["file_name"] = f"openvino/{openvino_file(load, precision).name}"
    elif backend == "onnx":
        given["file_name"] = f"onnx/{_onnx_file(folder).name}"
    model = _opened(folder, load, backend, given)
    batch = _best_batch(model, load.texts[:TRIED_TEXTS])

    def run(texts: list[str]) -> Outcome:
        return Outcome(
            model.encode(texts, batch_size=batch, normalize_embeddings=True),
            padded_tokens=_padded(model, texts, batch),
            setting=f"batch {batch}",
        )

    yield run


def sentence_transformer(load: Workload) -> Any:
    """Make the model of the workload's weights, on PyTorch."""
    import torch  # type: ignore[import-not-found]
    from sentence_transformers import SentenceTransformer, models  # type: ignore[import-not-found]

    torch.set_num_threads(load.threads)
    body = models.Transformer(load.model_dir, max_seq_length=load.max_tokens)
    pooling = models.Pooling(body.get_word_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[body, pooling, models.Normalize()], device="cpu")


def saved(load: Workload) -> Path:
    """Write the model as the library saves it, once for all contestants; return its folder."""
    folder = Path(load.model_dir).parent / "sentence-transformers"
    if not folder.exists():
        sentence_transformer(load).save(str(folder))
    return folder


def openvino_file(load: Workload, precision: str) -> Path:
    """Write OpenVINO's graph of the weights, or NNCF's int8 of that, once; return the file."""
    folder = saved(load)
    path = folder / "openvino" / FILES[precision]
    if not path.exists():
        if precision == "int8":
            _quantise(openvino_file(load, "fp32"), load, path)
        else:
            _opened(folder, load, "openvino", {"export": True}).save_pretrained(str(folder))
    return path


def _onnx_file(folder: Path) -> Path:
    from sentence_transformers import (
        SentenceTransformer,
        export_optimized_onnx_model,
    )

    path = folder / "onnx" / "model_O3.onnx"
    if not path.exists():
        model = SentenceTransformer(str(folder), backend="onnx", device="cpu")
        export_optimized_onnx_model(model, "O3", str(folder))
    return path


def _opened(folder: Path, load: Workload, backend: str, given: dict[str, Any]) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(load.threads)
    model = SentenceTransformer(str(folder), backend=backend, device="cpu", model_kwargs=given)
    model.max_seq_length = load.max_tokens
    return model


def _quantise(model: Path, load: Workload, path: Path) -> None:
    """As the library's own exporter does, whose calibration texts are a download."""
    import nncf  # type: ignore[import-not-found]
    import openvino  # type: ignore[import-not-found]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{load.model_dir}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(load.max_tokens)
    feeds = [feed([found.ids]) for found in tokenizer.encode_batch(load.texts[-CALIBRATION_TEXTS:])]
    nncf.set_log_level(40)
    quantised = nncf.quantize(
        openvino.Core().read_model(model),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(feeds),
    )
    openvino.save_model(quantised, path)


def feed(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Give token ids as a batch, padded to the longest."""
    input_ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(input_ids)
    for row, tokens in enumerate(rows):
        input_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(input_ids),
    }


def _best_batch(model: Any, texts: list[str]) -> int:
    took = {}
    for batch in BATCHES:
        # The first time compiles what a new shape needs.
        model.encode(texts, batch_size=batch)
        began = time.perf_counter()
        model.encode(texts, batch_size=batch)
        took[batch] = time.perf_counter() - began
    return min(took, key=lambda batch: took[batch])


def _padded(model: Any, texts: list[str], batch: int) -> int:
    """Count the tokens of its batches, which it cuts from the texts sorted by length."""
    ordered = sorted(texts, key=len, reverse=True)
    cuts = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    return sum(int(model.tokenize(cut)["input_ids"].numel()) for cut in cuts)
