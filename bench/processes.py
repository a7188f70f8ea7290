"""A contestant in a process of its own: opened once, then measured a turn at a time.

The parent writes a JSON line to the child's stdin, ``"go"`` or what it asks for,
and the child answers with one JSON line a turn. Between turns it waits, so that only
one contestant is ever busy.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
import numpy.typing as npt

from bench.common import ROOT
from memworker import interpreters

# Exporting, quantising and trying batches is among it.
START_TIMEOUT_S = 900.0
WARM_UP_TEXTS = 32
_CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What a contestant is given; `batches` are row counts for those that take cut batches."""

    texts: list[str]
    model: str
    precision: str
    model_dir: str
    max_tokens: int
    threads: int
    batches: list[int] = field(default_factory=list)

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> Workload:
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gave: float32[n, dim], and start-up inside the call, to be taken off.

    `setting` says what the contestant chose for itself.
    """

    vectors: npt.NDArray[np.float32]
    apart_s: float = 0.0
    real_tokens: int = 0
    padded_tokens: int = 0
    setting: str = ""


Run = Callable[[list[str]], Outcome]
Opener = Callable[[Workload], AbstractContextManager[Run]]


class Absent(Exception):
    """A contestant cannot take part; the message says why."""


class Contestant:
    """The parent's side of one child."""

    def __init__(
        self,
        name: str,
        workload: Path,
        *,
        module: str = "bench.peers",
        turn_timeout_s: float = 1800.0,
    ) -> None:
        self.name = name
        self._workload = workload
        self._turn_timeout_s = turn_timeout_s
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(workload)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=ROOT,
            env=interpreters.environment(),
            # Its own group: what it leaves running can be ended with it.
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Wait until it is warm. Raises Absent."""
        self.first_answer(START_TIMEOUT_S)

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """The vectors of its first turn, float32[n, dim]."""
        vectors: npt.NDArray[np.float32] = np.load(self._workload.with_suffix(".npy"))
        return vectors

    def first_answer(self, timeout_s: float) -> dict[str, Any]:
        """Wait for what it says once it is ready. Raises Absent."""
        answer = self._read(timeout_s)
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer

    def go(self, request: object = "go") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for the turn's figures. Raises Absent where it died or hangs."""
        return self._read(self._turn_timeout_s)

    def turn(self, request: object = "go") -> dict[str, Any]:
        """Run once: over all texts, or what the request asks for."""
        self.go(request)
        return self.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(_CLOSE_TIMEOUT_S if kind is None else 1.0)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        self._stderr.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], timeout_s)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise Absent(f"no answer within {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise Absent(f"ended by itself: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def serve(open_peer: Opener, path: Path) -> None:
    """Be the child: open, warm up, then a turn for every line on stdin.

    The vectors of the first turn are saved beside the workload.
    """
    answers, workload = open_answers(), Workload.load(path)
    try:
        with open_peer(workload) as run:
            run(workload.texts[:WARM_UP_TEXTS])
            print(json.dumps({"ready": True}), file=answers)
            for _ in sys.stdin:
                print(json.dumps(_measure(run, workload.texts, path)), file=answers)
    except Absent as absence:
        print(json.dumps({"absent": str(absence)}), file=answers)


def open_answers() -> TextIO:
    """Take stdout for the answers: what libraries print must not get between them."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def _measure(run: Run, texts: list[str], path: Path) -> dict[str, Any]:
    started = time.perf_counter()
    outcome = run(texts)
    seconds = time.perf_counter() - started - outcome.apart_s
    if len(outcome.vectors) != len(texts):
        raise RuntimeError(f"{len(outcome.vectors)} vectors for {len(texts)} texts")
    if not (saved := path.with_suffix(".npy")).exists():
        np.save(saved, outcome.vectors)
    return {
        "seconds": seconds,
        "real_tokens": outcome.real_tokens,
        "padded_tokens": outcome.padded_tokens,
        "setting": outcome.setting,
    }
