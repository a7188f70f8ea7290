"""How fast everything but inference is: an echo encoder, to vectors and into LanceDB.

CPU time is the parent's alone, all its threads: what one parent spends on a text
bounds how many workers it can feed. With --model the same for a real model: the
difference of the first two rows is then what the store costs. The third forces each
commit to the disk (--durable), so it says much of the disk under --scratch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.texts import many_texts, read_texts, token_counts
from memworker import EmbeddingPool, ingest
from memworker.errors import UsageError
from memworker.models import ReadyModel, ready_model
from memworker.pool import EchoLoader, machine

WARM_UP_TEXTS = 2048

Model: TypeAlias = EchoLoader | ReadyModel


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    model = _model(options)
    texts = _texts(model, options)
    with TemporaryDirectory(dir=options.scratch) as folder:
        path = write_jsonl(texts, Path(folder) / "texts.jsonl")
        warm = write_jsonl(texts[:WARM_UP_TEXTS], Path(folder) / "warm.jsonl")
        to_lancedb(warm, Path(folder) / "warm", model, options.workers)
        vectors, rows, forced = [], [], []
        for number in range(options.repeats):
            vectors.append(to_vectors(texts, model, options.workers))
            db = Path(folder) / f"db{number}"
            rows.append(to_lancedb(path, db, model, options.workers))
            forced.append(to_lancedb(path, db, model, options.workers, durable=True))
    result = {
        "texts": len(texts),
        "mean_bytes": sum(len(text.encode()) for text in texts) / len(texts),
        "model": options.model,
        "precision": options.precision,
        "workers": options.workers,
        "repeats": options.repeats,
        "rows": [
            {"name": "to vectors", **common.medians(vectors)},
            {"name": "to LanceDB", **common.medians(rows)},
            {"name": "to LanceDB, durable", **common.medians(forced)},
        ],
    }
    variant = "" if options.model == "echo" else Path(options.model).name
    common.publish("ceiling", result, options, show, variant=variant)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("ceiling", __doc__)
    parser.add_argument("texts", nargs="?", type=Path, help="jsonl(.gz); default: shipped sample")
    parser.add_argument("--limit", type=common.positive, default=100_000)
    parser.add_argument("--model", default="echo", help="default: echo, which infers nothing")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--dim", type=common.positive, default=384, help="echo's dimensions")
    parser.add_argument("--most-tokens", type=common.positive, help="leave longer texts out")
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    parser.add_argument("--repeats", type=common.positive, default=3)
    parser.add_argument("--scratch", type=Path, help="where the databases are made and removed")
    return parser.parse_args(arguments)


def _model(options: argparse.Namespace) -> Model:
    if options.model == "echo":
        return EchoLoader(options.dim)
    return ready_model(options.model, precision=options.precision)


def _texts(model: Model, options: argparse.Namespace) -> list[str]:
    if options.most_tokens is None:
        return many_texts(options.limit, options.texts)
    if isinstance(model, EchoLoader):
        raise UsageError("--most-tokens counts a model's tokens: name one with --model.")
    texts = read_texts(options.texts)
    counts = token_counts(texts, model)
    short = [
        text for text, count in zip(texts, counts, strict=True) if count <= options.most_tokens
    ]
    if not short:
        raise UsageError(f"no text has {options.most_tokens} tokens or fewer.")
    return short[: options.limit]


def to_vectors(texts: list[str], model: Model, workers: int) -> dict[str, float]:
    """Take a list of str through the pool, in input order, start-up apart."""
    with EmbeddingPool(model, workers=workers) as pool:
        for _ in pool.embed_batches(texts[:WARM_UP_TEXTS]):
            pass
        cpu, started = time.process_time(), time.perf_counter()
        done = sum(len(vectors) for _, vectors in pool.embed_batches(texts))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return _figures(done, seconds, cpu_s)


def to_lancedb(
    path: Path, db: Path, model: Model, workers: int, *, durable: bool = False
) -> dict[str, float]:
    """Take a jsonl file into a new table, from the first dispatch to the last commit."""
    began: list[float] = []
    report = ingest(
        path,
        db=db,
        table="durable" if durable else "ceiling",
        durable=durable,
        model=model,
        workers=workers,
        # Called once the pool is up: what came before is start-up.
        observer=lambda live: began.append(time.process_time()),
    )
    return _figures(report.written, report.seconds, time.process_time() - began[0])


def _figures(texts: int, seconds: float, cpu_s: float) -> dict[str, float]:
    return {
        "texts_per_second": texts / seconds,
        "parent_cpu_us_per_text": 1e6 * cpu_s / texts,
        "seconds": seconds,
    }


def write_jsonl(texts: list[str], path: Path) -> Path:
    """Write texts as rows with an id each."""
    rows = ({"id": f"row-{number:08d}", "text": text} for number, text in enumerate(texts))
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def show(result: common.Result) -> None:
    """Print a row a destination."""
    common.print_table(
        f"{result['model']}: {result['texts']:,} texts of {result['mean_bytes']:.0f} bytes,"
        f" {result['workers']} workers, medians of {result['repeats']}",
        ["", "texts/s", "parent CPU µs a text"],
        [
            [row["name"], f"{row['texts_per_second']:,.0f}", f"{row['parent_cpu_us_per_text']:.2f}"]
            for row in result["rows"]
        ],
    )


if __name__ == "__main__":
    sys.exit(common.run(main))
