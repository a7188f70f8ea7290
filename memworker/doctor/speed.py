"""What a pool takes here, and how fast it is: a pool that works for a second, in a child.

In a process of its own it can be ended at any moment, whatever it is at: the first build of a
model takes longer than anybody waits for a diagnosis.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

from memworker import interpreters
from memworker.doctor.findings import Finding, size

_WORK_S = 0.8
# At once: few enough that even a slow machine gets through them in the time there is.
_TEXTS = 64


class SpeedProbe:
    """A pool at work beside us; `finding` waits for what it tells, until a moment."""

    def __init__(self, model: str, precision: str) -> None:
        self._asked = {"model": model, "precision": precision}
        program = "from memworker.doctor.speed import main; main(sys.argv[1])"
        self._child = interpreters.child(program, json.dumps(self._asked))

    def finding(self, until: float) -> Finding:
        """Return what came by `until` (on the monotonic clock), and end the child."""
        try:
            output, _ = self._child.communicate(timeout=max(until - time.monotonic(), 0.05))
        except subprocess.TimeoutExpired:
            self._child.kill()
            output, _ = self._child.communicate()
        told: dict[str, Any] = {}
        for line in output.splitlines():
            told |= json.loads(line)
        return self._finding(told)

    def _finding(self, told: dict[str, Any]) -> Finding:
        if "error" in told:
            return Finding("pool", f"cannot be had: {told['error']}", self._asked, (told["error"],))
        if "workers" not in told:
            return self._not_ready()
        line = (
            f"{told['engine']}, {told['precision']}, {told['workers']} workers, runs of"
            f" {told['batch_tokens']:,} tokens, about {size(told['memory_bytes'])}"
        )
        if "tokens_per_s" not in told:
            return Finding("pool", f"{line}; its speed was not to be had in time", told)
        speed = f"{told['tokens_per_s']:,.0f} tokens/s, {told['texts_per_s']:,.0f} texts/s"
        reduced = told.pop("reduced", None)
        advice = [f"Less than usual: {reduced}."] if reduced else []
        return Finding("pool", f"{line}: {speed} (the shipped texts)", told, tuple(advice))

    def _not_ready(self) -> Finding:
        model, precision = self._asked["model"], self._asked["precision"]
        status = self._child.returncode
        if status not in (0, -signal.SIGKILL):
            said = f"the process that tries it ended with status {status}"
            advice = f"`memworker embed TEXT --precision {precision}` shows what it ends with."
            return Finding("pool", said, self._asked, (advice,))
        advice = (
            f"{model} was not ready in {precision} in the time there was: its first use builds it."
            f" `memworker models pull {model} --precision {precision}` does that now."
        )
        return Finding("pool", "not ready yet", self._asked, (advice,))


def main(asked: str) -> None:
    """Open a pool, work for a moment; print what is known as it comes, in lines of JSON."""
    from memworker.errors import MemworkerError

    try:
        _work(**json.loads(asked))
    except MemworkerError as error:
        _tell(error=str(error))
        sys.exit(1)


def _work(model: str, precision: str) -> None:
    from memworker.models import measuring_texts
    from memworker.pool import EmbeddingPool

    with EmbeddingPool(model, precision=precision) as pool:
        _tell(
            engine="OpenVINO" if pool.identity.precision == "bf16" else "ONNX Runtime",
            model=pool.identity.name,
            precision=pool.identity.precision,
            workers=pool.workers,
            batch_tokens=pool.plan.costs.batch_tokens,
            memory_bytes=pool.plan.memory_bytes,
            reduced=pool.plan.reduced,
        )
        texts = list(measuring_texts())[:_TEXTS]
        begun, before, done = time.perf_counter(), pool.work.real_tokens, 0
        while True:
            pool.embed(texts)
            done += len(texts)
            seconds = time.perf_counter() - begun
            _tell(
                tokens_per_s=(pool.work.real_tokens - before) / seconds,
                texts_per_s=done / seconds,
            )
            if seconds >= _WORK_S:
                return


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the parent reads it
