"""What one more worker costs in private memory, and how soon a pool is ready.

Private memory is what no other process shares: anonymous pages (RssAnon) and
unique ones (USS). One more worker: the workers of a pool of 3 less those of a
pool of 2, Python and libraries included. A session: what opening one and running
it adds to a process that has all libraries and the tokenizer already.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.coordination import pack
from bench.peers import run_padded
from bench.texts import read_texts
from memworker import EmbeddingPool
from memworker.errors import ModelError, UsageError
from memworker.models import ready_model
from memworker.pool import Costs, Tokenizer, open_session

BATCH_TOKENS = Costs(max_tokens=256).batch_tokens
MB = 1e6
FEWER, MORE = 2, 3


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    texts = read_texts(options.texts, options.limit)
    rows = [{"name": "no model (echo)", **_one_more("echo", "fp32", texts, options)}]
    for name in options.models:
        for precision in options.precisions:
            rows.append(_row(name, precision, texts, options))
    common.publish("memory_of_a_worker", {"texts": len(texts), "rows": rows}, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("memory_of_a_worker", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--limit", type=common.positive, default=512)
    parser.add_argument("--models", type=common.names, default=["all-MiniLM-L6-v2"])
    parser.add_argument("--precisions", type=common.names, default=["fp32", "int8"])
    parser.add_argument("--repeats", type=common.positive, default=3)
    return parser.parse_args(arguments)


def _row(name: str, precision: str, texts: list[str], options: argparse.Namespace) -> common.Result:
    label = f"{name} {precision}"
    try:
        found = _one_more(name, precision, texts, options)
    except (UsageError, ModelError) as error:
        return {"name": label, "skipped": str(error)}
    return {"name": label, **found, "session_anon_mb": _session_alone(name, precision, texts)}


def _one_more(
    name: str, precision: str, texts: list[str], options: argparse.Namespace
) -> dict[str, float]:
    """Open pools of 2 and of 3 workers in turn; medians of the differences."""
    turns = []
    for _ in range(options.repeats):
        fewer = _private(name, precision, texts, FEWER)
        more = _private(name, precision, texts, MORE)
        turns.append(
            {
                "anon_mb": more["anon_mb"] - fewer["anon_mb"],
                "uss_mb": more["uss_mb"] - fewer["uss_mb"],
                "startup_seconds": fewer["startup_seconds"],
            }
        )
    return common.medians(turns)


def _private(name: str, precision: str, texts: list[str], workers: int) -> dict[str, float]:
    """Add up the private memory of a pool's workers once they have worked."""
    with EmbeddingPool(name, precision=precision, workers=workers) as pool:
        pool.embed(texts)
        pids = pool.worker_pids()
        return {
            "anon_mb": sum(map(_anonymous_bytes, pids)) / MB,
            "uss_mb": sum(psutil.Process(pid).memory_full_info().uss for pid in pids) / MB,
            "startup_seconds": pool.startup_seconds,
        }


def _session_alone(name: str, precision: str, texts: list[str]) -> float:
    """Measure in a fresh process what the session adds; MB of RssAnon."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(session_anon_mb, name, precision, texts).result()


def session_anon_mb(name: str, precision: str, texts: list[str]) -> float:
    """Open a session here, run it over texts in micro-batches, and say what that added."""
    model = ready_model(name, precision=precision)
    special = model.spec.add_special_tokens
    ids, _ = Tokenizer(model.tokenizer, model.max_tokens, add_special_tokens=special)(texts)
    batches = pack(np.array([len(tokens) for tokens in ids]), BATCH_TOKENS)
    import_module("onnxruntime")
    before = _anonymous_bytes(os.getpid())
    session = open_session(model)
    for batch in batches:
        run_padded(session, [ids[row] for row in batch])
    return (_anonymous_bytes(os.getpid()) - before) / MB


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise UsageError("this system does not tell RssAnon; the bench needs Linux.")


def show(result: common.Result) -> None:
    """Print a row a model."""
    common.print_table(
        f"Private memory, after {result['texts']:,} texts",
        ["", "one more worker, RssAnon MB", "USS MB", "its session alone MB", "pool ready s"],
        [_cells(row) for row in result["rows"]],
    )
    for row in result["rows"]:
        if "skipped" in row:
            print(f"not available: {row['name']}: {row['skipped']}")


def _cells(row: common.Result) -> list[str]:
    if "skipped" in row:
        return [row["name"], "not available"]
    keys = ("anon_mb", "uss_mb", "session_anon_mb")
    sizes = [f"{row[key]:.1f}" if key in row else "" for key in keys]
    return [row["name"], *sizes, f"{row['startup_seconds']:.2f}"]


if __name__ == "__main__":
    sys.exit(common.run(main))
