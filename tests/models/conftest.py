"""The real model, fetched and built once a run, and sessions as workers open them."""

from __future__ import annotations

import numpy as np
import pytest

from memworker.models import ready_model


@pytest.fixture(scope="session")
def minilm():
    return ready_model("all-MiniLM-L6-v2")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def open_session(graph):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def run_padded(session, rows, extra=0):
    """Run rows of token ids as one batch, padded `extra` beyond the longest."""
    longest = max(map(len, rows)) + extra
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
