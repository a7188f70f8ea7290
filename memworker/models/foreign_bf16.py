"""Somebody else's ONNX graph as OpenVINO's own, for products in bf16.

It takes what graphs of `parts_bf16` take, ``input_ids`` int32[n, tokens] and ``attention_mask``
float32[n, tokens], and gives the graph's first output. Token types are all 0.

This module runs in a process of its own, for it loads OpenVINO.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from memworker import interpreters
from memworker.models.foreign_check import refuse_unlike

# Part of the fingerprint: raise it with any change that may move a vector.
RECIPE = "foreign-bf16-1"


def main() -> None:
    """Do what the job on standard input says; see `models.foreign_build`."""
    job = json.load(sys.stdin)
    write(job["source"], job["ids"], job["target"])


def write(source: str, ids: list[list[int]], target: str) -> None:
    """Read the ONNX file `source` and save its graph to `target`, its weights beside it.

    Raises ValueError where OpenVINO gives other vectors of these tokens.
    """
    interpreters.without_telemetry()
    import openvino

    openvino.save_model(_taking_ours(openvino.Core().read_model(source)), target, False)
    refuse_unlike(source, ids, target, "openvino")


def _taking_ours(theirs: Any) -> Any:
    import numpy as np
    from openvino import Model, opset15 as op

    ids = op.parameter([-1, -1], np.int32, name="input_ids")
    mask = op.parameter([-1, -1], np.float32, name="attention_mask")
    stand_for = {"input_ids": ids, "attention_mask": mask}
    for given in theirs.inputs:
        kind = given.element_type.to_string()
        source = next((stand_for[name] for name in given.names if name in stand_for), None)
        if source is None:
            source = op.multiply(ids, op.constant(np.int32(0)))
        converted = op.convert(source, kind).output(0)
        for user in given.get_target_inputs():
            user.replace_source_output(converted)
    first = theirs.output(0).get_node()
    model = Model([first], [ids, mask], "memworker-foreign-bf16")
    for given, name in zip(model.inputs, stand_for, strict=True):
        given.get_tensor().set_names({name})
    return model
