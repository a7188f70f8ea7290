"""The same short memories by ten concurrent callers, one step better at a time.

From one model behind a mutex to a static model on worker processes. An operation
is one memory embedded; every step runs in turn, figures are medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import Any, TypeAlias

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.peers import FASTEMBED_NAME
from bench.reference import export_reference
from bench.texts import read_texts
from memworker import EmbeddingPool
from memworker.errors import ModelError, UsageError
from memworker.models import ready_model
from memworker.pool import machine

MODEL = "all-MiniLM-L6-v2"
STATIC_MODEL = "wordllama-256"
SHORT_CHARS = 120
QUEUE_ROWS = 32
QUEUE_WAIT_S = 0.01

Embed: TypeAlias = Callable[[list[str]], object]
Waiting: TypeAlias = "Queue[tuple[str, Future[Any]] | None]"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    texts = [text for text in read_texts(options.texts) if len(text) <= SHORT_CHARS]
    texts = texts[: options.limit]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        setting = Setting(Path(folder), options.callers, options.workers)
        export_reference(ready_model(MODEL), setting.model_dir)
        steps = _open_steps(setting, stack)
        for step in steps:
            step.turn(texts[: options.callers])
        timed = [[step.turn(texts) for step in steps] for _ in range(options.repeats)]
    rates = common.medians(
        [{s.name: r for s, r in zip(steps, turn, strict=True)} for turn in timed]
    )
    result = {
        "memories": len(texts),
        "callers": options.callers,
        "workers": options.workers,
        "repeats": options.repeats,
        "rows": _rows(steps, rates),
    }
    common.publish("ladder", result, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("ladder", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--limit", type=common.positive, default=1000, help="memories")
    parser.add_argument("--callers", type=common.positive, default=10)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    parser.add_argument("--repeats", type=common.positive, default=3)
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class Setting:
    """What every step shares."""

    model_dir: Path
    callers: int
    threads: int


@dataclass(slots=True)
class Step:
    """One rung: what a caller does with its memories, or why it cannot be had."""

    name: str
    embed: Embed | None
    callers: int
    skipped: str = ""

    def turn(self, texts: list[str]) -> float:
        """Let the callers share the texts; gives operations a second."""
        if self.embed is None:
            return 0.0
        shares = [texts[caller :: self.callers] for caller in range(self.callers)]
        started = time.perf_counter()
        with ThreadPoolExecutor(self.callers) as callers:
            list(callers.map(self.embed, filter(None, shares)))
        return len(texts) / (time.perf_counter() - started)


def _open_steps(setting: Setting, stack: ExitStack) -> list[Step]:
    ladder: list[tuple[str, Callable[[Setting], Any]]] = [
        ("one model behind a mutex", mutex),
        ("a call a text, threads share a session", shared_session),
        ("micro-batching queue", micro_batched_queue),
        ("each caller hands over its batch", batch_add),
        ("memworker: N sessions", pool(MODEL, "fp32")),
        ("memworker: int8", pool(MODEL, "int8")),
        (f"memworker: static ({STATIC_MODEL})", pool(STATIC_MODEL, "fp32")),
    ]
    steps = []
    for name, opener in ladder:
        try:
            steps.append(Step(name, stack.enter_context(opener(setting)), setting.callers))
        except (UsageError, ModelError) as error:
            steps.append(Step(name, None, setting.callers, skipped=str(error)))
    return steps


@contextmanager
def mutex(setting: Setting) -> Iterator[Embed]:
    """Lock one model for every text: what AgentMem does."""
    model, lock = _fastembed(setting, setting.threads), Lock()

    def embed(texts: list[str]) -> None:
        for text in texts:
            with lock:
                list(model.embed([text]))

    yield embed


@contextmanager
def shared_session(setting: Setting) -> Iterator[Embed]:
    """Call one single-threaded session from all callers at once."""
    model = _fastembed(setting, 1)

    def embed(texts: list[str]) -> None:
        for text in texts:
            list(model.embed([text]))

    yield embed


@contextmanager
def micro_batched_queue(setting: Setting) -> Iterator[Embed]:
    """Queue the texts of all callers; one thread embeds what has gathered within 10 ms."""
    queue: Waiting = Queue()
    consumer = Thread(target=_consume, args=(_fastembed(setting, setting.threads), queue))
    consumer.start()

    def embed(texts: list[str]) -> None:
        for text in texts:
            future: Future[Any] = Future()
            queue.put((text, future))
            future.result()

    yield embed
    queue.put(None)
    consumer.join()


@contextmanager
def batch_add(setting: Setting) -> Iterator[Embed]:
    """Give the model each caller's memories in one call, in batches of 32."""
    model = _fastembed(setting, setting.threads)
    yield lambda texts: list(model.embed(texts, batch_size=QUEUE_ROWS))


def pool(model: str, precision: str) -> Callable[[Setting], AbstractContextManager[Embed]]:
    """Give the pool each caller's memories in one call."""

    @contextmanager
    def opener(setting: Setting) -> Iterator[Embed]:
        with EmbeddingPool(model, precision=precision, workers=setting.threads) as opened:
            yield opened.embed

    return opener


def _consume(model: Any, queue: Waiting) -> None:
    while (first := queue.get()) is not None:
        batch, deadline = [first], time.monotonic() + QUEUE_WAIT_S
        while len(batch) < QUEUE_ROWS and (left := deadline - time.monotonic()) > 0:
            try:
                waiting = queue.get(timeout=left)
            except Empty:
                break
            if waiting is None:
                queue.put(None)
                break
            batch.append(waiting)
        vectors = model.embed([text for text, _ in batch], batch_size=QUEUE_ROWS)
        for (_, future), vector in zip(batch, vectors, strict=True):
            future.set_result(vector)


def _fastembed(setting: Setting, threads: int) -> Any:
    from fastembed import TextEmbedding

    return TextEmbedding(
        model_name=FASTEMBED_NAME, specific_model_path=str(setting.model_dir), threads=threads
    )


def _rows(steps: list[Step], rates: dict[str, float]) -> list[common.Result]:
    """Hold each step against the one before and the first that there are."""
    rows: list[common.Result] = []
    first = before = 0.0
    for step in steps:
        if step.skipped:
            rows.append({"name": step.name, "skipped": step.skipped})
            continue
        rate = rates[step.name]
        first, before = first or rate, before or rate
        ratios = {"over_previous": rate / before, "over_first": rate / first}
        rows.append({"name": step.name, "operations_per_second": rate, **ratios})
        before = rate
    return rows


def show(result: common.Result) -> None:
    """Print a row a step."""
    common.print_table(
        f"{result['memories']:,} short memories, {result['callers']} callers,"
        f" {result['workers']} threads or workers, medians of {result['repeats']}",
        ["", "ops/s", "÷ step before", "÷ first step"],
        [_cells(row) for row in result["rows"]],
    )
    for row in result["rows"]:
        if "skipped" in row:
            print(f"not available: {row['name']}: {row['skipped']}")


def _cells(row: common.Result) -> list[str]:
    if "skipped" in row:
        return [row["name"], "not available"]
    ratios = [f"{row[key]:.2f}" for key in ("over_previous", "over_first")]
    return [row["name"], f"{row['operations_per_second']:,.0f}", *ratios]


if __name__ == "__main__":
    sys.exit(common.run(main))
