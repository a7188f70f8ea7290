"""Whether what a file of others' became gives its vectors: engines may read a graph otherwise.

This module runs in processes of their own, for it loads the engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

# Far below what rounding does: it tells another graph, or broken numbers, from a coarse one.
_LEAST_COSINE = 0.9
_TEXTS = 6


def refuse_unlike(file: str, ids: list[list[int]], made: str, engine: str) -> None:
    """Raise ValueError where `made`, opened in `engine`, gives other vectors than `file`."""
    import numpy as np

    # Of different lengths, so that there is padding.
    few = sorted(ids, key=len)[:: max(len(ids) // _TEXTS, 1)]
    padded = np.zeros((len(few), max(map(len, few))), np.int64)
    mask = np.zeros_like(padded)
    for row, tokens in enumerate(few):
        padded[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    run = _onnxruntime if engine == "onnxruntime" else _openvino
    exact, found = (
        _pooled(_onnxruntime(file, padded, mask), mask),
        _pooled(run(made, padded, mask), mask),
    )
    if exact.shape != found.shape:
        raise ValueError(f"{engine} gives {list(found.shape)} where the file gives {exact.shape}")
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
    cosine = float(((exact * found).sum(1) / np.maximum(lengths, 1e-12)).mean())
    if not cosine >= _LEAST_COSINE:
        raise ValueError(
            f"{engine} gives other vectors: their cosine to the file's is {cosine:.3f}"
        )


def _pooled(output: Any, mask: Any) -> Rows:
    import numpy as np

    if output.ndim == 3 and len(output) == len(mask):
        output = (output * mask[:, :, None]).sum(1)
    return np.asarray(output, np.float32)


def _onnxruntime(path: str, ids: Any, mask: Any) -> Any:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    given = {each.name for each in session.get_inputs()}
    return session.run(None, {name: feeds[name] for name in feeds if name in given})[0]


def _openvino(path: str, ids: Any, mask: Any) -> Any:
    import numpy as np
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return np.array(request.infer([ids.astype(np.int32), mask.astype(np.float32)])[0])
