"""From measured costs to the throughput of many cores.

The parent's CPU time a text and a shard is measured with the echo encoder, the
workers' busy time a text with the model at 1 and at 2 workers. Then a second
gives, on W cores with W workers,

    rate(W) = min(W / (worker + parent), 1 / parent)   texts,

where `worker` and `parent` are their CPU seconds a text. Assumed: the parent
shares the workers' cores and one parent does not use more than one core; from 2
workers on, a worker is slowed by its neighbours as it is at 2 (more cores with
less memory bandwidth each would do worse); texts arrive fast enough, and the
store's own work is apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.texts import many_texts, read_texts
from memworker import EmbeddingPool
from memworker.errors import ModelError, UsageError
from memworker.pool import EchoLoader

CORES = (1, 2, 4, 8, 16, 32, 64)
MEASURED = (1, 2)
REQUEST_ROWS = (16, 64, 256, 1024, 4096)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    parent = parent_costs(options)
    texts = read_texts(options.texts, options.limit)
    rows = []
    for name in options.models:
        for precision in options.precisions:
            rows.append(_row(name, precision, texts, parent, options))
    result = {
        "texts": len(texts),
        "repeats": options.repeats,
        "parent_us": {kind: 1e6 * seconds for kind, seconds in parent.items()},
        "assumes": " ".join((__doc__ or "").split("Assumed: ")[-1].split()),
        "rows": rows,
    }
    common.publish("scaling", result, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("scaling", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--limit", type=common.positive, default=1024)
    parser.add_argument("--echo-limit", type=common.positive, default=100_000)
    parser.add_argument("--models", type=common.names, default=["all-MiniLM-L6-v2"])
    parser.add_argument("--precisions", type=common.names, default=["fp32", "int8"])
    parser.add_argument("--repeats", type=common.positive, default=3)
    return parser.parse_args(arguments)


def parent_costs(options: argparse.Namespace) -> dict[str, float]:
    """Measure the parent's CPU seconds a text, and a shard with its share of a request."""
    texts = many_texts(options.echo_limit, options.texts)
    observed = []
    with EmbeddingPool(EchoLoader(), workers=max(MEASURED)) as pool:
        pool.embed(texts[: max(REQUEST_ROWS)])
        for rows in REQUEST_ROWS:
            # Small requests cost more a text: fewer of them tell as much.
            part = texts[: max(rows, len(texts) * rows // max(REQUEST_ROWS))]
            before, cpu = pool.work.shards, time.process_time()
            for _ in pool.embed_batches(part, batch_size=rows):
                pass
            cpu_s = time.process_time() - cpu
            observed.append((len(part), pool.work.shards - before, cpu_s))
    return fit_costs(np.array(observed, np.float64))


def fit_costs(observed: npt.NDArray[np.float64]) -> dict[str, float]:
    """Fit seconds = text * texts + shard * shards; rows of (texts, shards, seconds).

    Least squares of the relative errors, so that large runs do not drown small ones.
    """
    counts, seconds = observed[:, :2], observed[:, 2:]
    (text, shard), *_ = np.linalg.lstsq(counts / seconds, np.ones(len(counts)), rcond=None)
    return {"text": max(float(text), 0.0), "shard": max(float(shard), 0.0)}


def _row(
    name: str,
    precision: str,
    texts: list[str],
    parent: dict[str, float],
    options: argparse.Namespace,
) -> common.Result:
    label = f"{name} {precision}"
    try:
        turns: dict[int, list[dict[str, float]]] = {workers: [] for workers in MEASURED}
        for _ in range(options.repeats):
            for workers in MEASURED:
                turns[workers].append(_measure(name, precision, texts, workers))
    except (UsageError, ModelError) as error:
        return {"name": label, "skipped": str(error)}
    measured = {workers: common.medians(found) for workers, found in turns.items()}
    parent_s = parent["text"] + parent["shard"] * measured[2]["shards"] / len(texts)
    busy = {workers: found["worker_s"] for workers, found in measured.items()}
    return {
        "name": label,
        "worker_us_per_text": {str(workers): 1e6 * seconds for workers, seconds in busy.items()},
        "parent_us_per_text": 1e6 * parent_s,
        "measured": {str(w): found["texts_per_second"] for w, found in measured.items()},
        "tokens_per_second": {str(w): found["tokens_per_second"] for w, found in measured.items()},
        "predicted": {str(cores): predict(cores, busy, parent_s) for cores in CORES},
        "parent_feeds_workers": busy[2] / parent_s,
    }


def _measure(name: str, precision: str, texts: list[str], workers: int) -> dict[str, float]:
    """Embed with so many workers; their busy seconds come from their own clocks."""
    with EmbeddingPool(name, precision=precision, workers=workers) as pool:
        pool.embed(texts[:64])
        before, started = pool.work, time.perf_counter()
        pool.embed(texts)
        seconds, work = time.perf_counter() - started, pool.work
    busy_s = work.tokenize_s + work.encode_s - before.tokenize_s - before.encode_s
    return {
        "texts_per_second": len(texts) / seconds,
        "tokens_per_second": (work.real_tokens - before.real_tokens) / seconds,
        "worker_s": busy_s / len(texts),
        "shards": work.shards - before.shards,
    }


def predict(cores: int, worker_s: dict[int, float], parent_s: float) -> float:
    """Predict texts a second on so many cores, as the module's formula says."""
    busy_s = worker_s[min(cores, max(worker_s))]
    return min(cores / (busy_s + parent_s), 1 / parent_s)


def show(result: common.Result) -> None:
    """Print costs, the curve, and how the prediction fares where it can be checked."""
    parent = result["parent_us"]
    print(f"Parent: {parent['text']:.2f} µs a text and {parent['shard']:.0f} µs a shard of its CPU")
    common.print_table(
        f"Predicted texts/s by cores, from {result['texts']:,} texts",
        ["", *map(str, CORES), "workers one parent feeds"],
        [_curve(row) for row in result["rows"]],
    )
    common.print_table(
        "The prediction where it can be checked",
        ["", *(f"{w} worker{'s' * (w > 1)}: measured / predicted" for w in MEASURED)],
        [_check(row) for row in result["rows"]],
    )
    for row in result["rows"]:
        if "skipped" in row:
            print(f"not available: {row['name']}: {row['skipped']}")
    print(f"Assumed: {result['assumes']}")


def _curve(row: common.Result) -> list[str]:
    if "skipped" in row:
        return [row["name"], "not available"]
    rates = [f"{rate:,.0f}" for rate in row["predicted"].values()]
    return [row["name"], *rates, f"{row['parent_feeds_workers']:,.0f}"]


def _check(row: common.Result) -> list[str]:
    if "skipped" in row:
        return [row["name"], "not available"]
    pairs = [(row["measured"][str(w)], row["predicted"][str(w)]) for w in MEASURED]
    return [row["name"], *(f"{m:,.0f} / {p:,.0f} = {m / p:.3f}" for m, p in pairs)]


if __name__ == "__main__":
    sys.exit(common.run(main))
