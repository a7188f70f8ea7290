"""What this machine's matrix units can do at most: measured once a precision, remembered.

The limit is the rate of matrix products (GEMM) of the shapes that a MiniLM layer has, the faster
of them, computed as workers compute them: by ONNX Runtime in fp32 and int8, by OpenVINO in bf16,
one thread a core, all cores at once.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from memworker import interpreters
from memworker.pool import machine, remembered

ROWS = 512
SHAPES = ((384, 1536), (1536, 384))
_MEASURE_S = 0.2
_PATIENCE_S = 20.0
Product = Callable[[], object]


def flops_per_second(cores: int, precision: str = "fp32", *, again: bool = False) -> float | None:
    """Give the FLOP/s of `cores` cores together; measures for half a second the first time.

    `again` measures anew; the higher figure is kept, for a busy machine shows
    less than it has. None when it cannot be measured, or not be kept.
    """
    known = recall(cores, precision)
    if known is not None and not again:
        return known
    if precision not in _PRODUCTS or remembered.obstacle():
        # It would cost every start half a second.
        return None
    measured = _measure(cores, precision)
    if measured is None:
        return known
    best = max(measured, known or 0.0)
    remembered.keep(_name(cores, precision), best)
    return best


def beaten(cores: int, precision: str, flops: float) -> None:
    """Remember that more was computed than was held for the most: the limit is no lower."""
    remembered.keep(_name(cores, precision), flops)


def know_for(flops_per_token: float, precision: str) -> None:
    """Measure all cores, for a model whose work can be held against that; known ones cost nothing.

    For a moment at which nothing else is at work.
    """
    if flops_per_token:
        flops_per_second(machine.usable_cores(), precision)


def recall(cores: int, precision: str = "fp32") -> float | None:
    """Give what was measured before; None when nothing was."""
    known = remembered.recall(_name(cores, precision))
    return None if known is None else float(known)


def _name(cores: int, precision: str) -> str:
    products = "gemm" if precision == "fp32" else f"{precision} gemm"
    return f"{products} flops of {cores} cores, two shapes"


def _measure(cores: int, precision: str) -> float | None:
    """Run one child a core at the same time, for they share caches and clock."""
    children: list[subprocess.Popen[str]] = []
    watchdog = threading.Timer(_PATIENCE_S, _kill_all, (children,))
    try:
        watchdog.start()
        program = "from memworker.pool.peak_flops import main; main(sys.argv[1])"
        children += [
            interpreters.child(program, precision, stdin=subprocess.PIPE) for _ in range(cores)
        ]
        # Each waits for a line, so that all begin together and imports do not count.
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        outputs = [child.communicate()[0] for child in children]
        return sum(float(output) for output in outputs)
    except (OSError, ValueError, RuntimeError):
        # Also where no thread or process is to be had: a job does without the figure.
        return None
    finally:
        watchdog.cancel()
        for child in children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                # Closing flushes, which fails where the child is gone.
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _kill_all(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        child.kill()


def main(precision: str) -> None:
    """Measure one core: print a line when ready, wait for one, print FLOP/s."""
    products = [_PRODUCTS[precision](*shape) for shape in SHAPES]
    for run in products:
        run()
    print("ready", flush=True)  # noqa: T201 - the parent waits for it
    sys.stdin.readline()
    print(max(map(_rate, products, SHAPES)))  # noqa: T201 - the result


def _rate(run: Product, shape: tuple[int, int]) -> float:
    inner, outer = shape
    runs, started, begun = 0, time.perf_counter(), time.process_time()
    # Once at the least, even where the machine let the time pass without us.
    while not runs or time.perf_counter() - started < _MEASURE_S:
        run()
        runs += 1
    # What others have of this core meanwhile is no limit of it.
    return 2.0 * ROWS * inner * outer * runs / (time.process_time() - begun)


def _fp32(inner: int, outer: int) -> Product:
    import numpy as np

    weights = {"w": np.full((inner, outer), 0.01, np.float32)}
    return _onnx_product("MatMul", "", weights, np.full((ROWS, inner), 0.5, np.float32))


def _int8(inner: int, outer: int) -> Product:
    import numpy as np

    weights = {
        "w": np.full((inner, outer), 3, np.int8),
        "x_scale": np.array(0.1, np.float32),
        "w_scale": np.full(outer, 0.1, np.float32),
        "x_zero": np.array(128, np.uint8),
    }
    rows = np.full((ROWS, inner), 200, np.uint8)
    return _onnx_product("MatMulIntegerToFloat", "com.microsoft", weights, rows)


def _onnx_product(kind: str, domain: str, weights: dict[str, Any], rows: Any) -> Product:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    element = helper.np_dtype_to_tensor_dtype(rows.dtype)
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *weights], ["y"], domain=domain)],
        "gemm",
        [helper.make_tensor_value_info("x", element, list(rows.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, weights["w"].shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": rows})


def _bf16(inner: int, outer: int) -> Product:
    interpreters.without_telemetry()
    import numpy as np
    import openvino
    from openvino import opset15 as op

    rows = op.parameter([ROWS, inner], np.float32)
    weights = op.constant(np.full((outer, inner), 0.01, np.float32))
    model = openvino.Model([op.matmul(rows, weights, False, True)], [rows], "gemm")
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
    # Pinned, all children would share one core.
    settings |= {"ENABLE_CPU_PINNING": False}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    given = [np.full((ROWS, inner), 0.5, np.float32)]
    return lambda: request.infer(given, share_inputs=True, share_outputs=True)


_PRODUCTS = {"fp32": _fp32, "int8": _int8, "bf16": _bf16}
