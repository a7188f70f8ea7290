"""What this machine's matrix units can do at most: measured once, remembered.

The limit is the rate of single-precision matrix products (GEMM) of the shape
that a MiniLM layer has, one ONNX Runtime thread a core, all cores at once.
int8 runs beyond it, as it uses other units.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress

from memworker import interpreters
from memworker.pool import machine, remembered

ROWS, INNER, OUTER = 512, 384, 1536
_MEASURE_S = 0.4
_PATIENCE_S = 20.0


def flops_per_second(cores: int, *, again: bool = False) -> float | None:
    """Give the FLOP/s of `cores` cores together; measures for half a second the first time.

    `again` measures anew; the higher figure is kept, for a busy machine shows
    less than it has. None when it cannot be measured, or not be kept.
    """
    known = recall(cores)
    if known is not None and not again:
        return known
    if remembered.obstacle():
        # It would cost every start half a second.
        return None
    measured = _measure(cores)
    if measured is None:
        return known
    best = max(measured, known or 0.0)
    remembered.keep(_name(cores), best)
    return best


def know_for(flops_per_token: float) -> None:
    """Measure all cores, for a model whose work can be held against that; known ones cost nothing.

    For a moment at which nothing else is at work.
    """
    if flops_per_token:
        flops_per_second(machine.usable_cores())


def recall(cores: int) -> float | None:
    """Give what was measured before; None when nothing was."""
    known = remembered.recall(_name(cores))
    return None if known is None else float(known)


def _name(cores: int) -> str:
    return f"gemm flops of {cores} cores"


def _measure(cores: int) -> float | None:
    """Run one child a core at the same time, for they share caches and clock."""
    children: list[subprocess.Popen[str]] = []
    watchdog = threading.Timer(_PATIENCE_S, _kill_all, (children,))
    try:
        watchdog.start()
        # A session of their own: Ctrl-C is for this process to answer.
        children += [_child() for _ in range(cores)]
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


def _child() -> subprocess.Popen[str]:
    return subprocess.Popen(
        interpreters.command("from memworker.pool.peak_flops import main; main()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=interpreters.environment(),
        start_new_session=True,
    )


def main() -> None:
    """Measure one core: print a line when ready, wait for one, print FLOP/s."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = np.full((INNER, OUTER), 0.01, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, OUTER])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": np.full((ROWS, INNER), 0.5, np.float32)}
    session.run(None, feeds)
    print("ready", flush=True)  # noqa: T201 - the parent waits for it
    sys.stdin.readline()
    runs, started = 0, time.perf_counter()
    # Once at the least, even where the machine let the time pass without us.
    while not runs or time.perf_counter() - started < _MEASURE_S:
        session.run(None, feeds)
        runs += 1
    seconds = time.perf_counter() - started
    print(2.0 * ROWS * INNER * OUTER * runs / seconds)  # noqa: T201 - the result
