"""What the vectors are worth: STS-B, LoCoMo and SciFact, for each precision and model.

LoCoMo twice: over all turns of all conversations by full comparison, and as the
memory layer is used, each conversation a user of its own, through `Memory.search`, in
every mode (see conversations.py).
The reference data is needed: --data DIR or MEMWORKER_DATA.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import common
from bench.conversations import Conversations, Score, ndcg, show_modes
from bench.texts import data_dir, read_jsonl
from memworker import EmbeddingPool, Table, ingest
from memworker.errors import InputNotFound, ModelError, UsageError
from memworker.pool import machine

TOP = 10

Floats: TypeAlias = npt.NDArray[Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    unknown = sorted(set(options.tasks) - TASKS.keys())
    if unknown:
        raise UsageError(f"no such task: {', '.join(unknown)}. There are: {', '.join(TASKS)}.")
    data = data_dir(options.data)
    tasks = {name: TASKS[name](data, options.limit) for name in options.tasks}
    configs = [(model, p) for model in options.models for p in options.precisions]
    rows, reference = [], None
    for model, precision in configs:
        try:
            row, vectors = _measure(model, precision, tasks, options)
        except (UsageError, ModelError) as error:
            rows.append({"model": model, "precision": precision, "skipped": str(error)})
            continue
        if reference is None:
            reference = vectors
        elif model == options.models[0]:
            row |= _cosines(vectors, reference)
        rows.append(row)
    common.publish("quality", {"rows": rows, "limit": options.limit}, options, show)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("quality", __doc__)
    parser.add_argument("--data", type=Path, help="folder of reference data")
    parser.add_argument("--models", type=common.names, default=["all-MiniLM-L6-v2"])
    parser.add_argument("--precisions", type=common.names, default=["fp32", "int8"])
    parser.add_argument("--tasks", type=common.names, default=list(TASKS))
    parser.add_argument("--limit", type=common.positive, help="rows of each task, for a quick look")
    parser.add_argument("--max-tokens", type=common.positive, default=256)
    parser.add_argument("--workers", type=common.positive, default=machine.usable_cores())
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sentence pairs with people's scores: Spearman's correlation of the cosines."""

    first: list[str]
    second: list[str]
    scores: Floats
    metric: str

    def measure(self, pool: EmbeddingPool) -> list[Score]:
        vectors = pool.embed([*self.first, *self.second])
        a, b = _unit(vectors[: len(self.first)]), _unit(vectors[len(self.first) :])
        return [Score(self.metric, spearman((a * b).sum(axis=1), self.scores), vectors)]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Passages, questions, and how relevant which passage is to which question."""

    passages: list[str]
    questions: list[str]
    relevant: list[dict[int, float]]
    metric: str
    score: Callable[[Sequence[int], dict[int, float]], float]

    def measure(self, pool: EmbeddingPool) -> list[Score]:
        passages = pool.embed(self.passages)
        questions = pool.embed(self.questions, kind="query")
        ranked = exact_top(_unit(questions), _unit(passages), TOP)
        pairs = zip(ranked, self.relevant, strict=True)
        scores = [self.score(row.tolist(), relevant) for row, relevant in pairs]
        vectors = np.concatenate([passages, questions])
        return [Score(self.metric, float(np.mean(scores)), vectors)]


@dataclass(frozen=True, slots=True)
class InChunks:
    """A retrieval whose passages are cut into chunks of the model's size, and found by their best.

    Through `ingest` and `Table.search_many`, as a user would.
    """

    whole: Retrieval

    def measure(self, pool: EmbeddingPool) -> list[Score]:
        rows = ({"id": str(row), "text": text} for row, text in enumerate(self.whole.passages))
        questions = pool.embed(self.whole.questions, kind="query")
        with TemporaryDirectory() as folder:
            ingest(rows, db=folder, table="t", pool=pool, chunk="model")
            table = Table.open(folder, "t")
            found = table.search_many(
                questions, limit=TOP, exact=True, group=True, columns=["parent_id"]
            )
        pairs = zip(found, self.whole.relevant, strict=True)
        scores = [
            self.whole.score([int(hit.parent_id or 0) for hit in hits], relevant)
            for hits, relevant in pairs
        ]
        return [Score(self.whole.metric, float(np.mean(scores)))]


Task = Pairs | Retrieval | Conversations


def stsb(data: Path, limit: int | None) -> Pairs:
    """Read STS-B's test set: two sentences and a score from 0 to 5 a row, no header."""
    path = _existing(data / "stsb" / "stsb-en-test.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:limit]
    first, second, scores = zip(*rows, strict=True)
    values = np.array(scores, np.float64)
    return Pairs(list(first), list(second), values, "STS-B Spearman")


def locomo(data: Path, limit: int | None) -> Retrieval:
    """Read LoCoMo: questions about long conversations, over all turns of all of them."""
    return _beir(data / "locomo", limit, f"LoCoMo recall@{TOP}", recall)


def conversations(data: Path, limit: int | None) -> Conversations:
    """Read LoCoMo as ten conversations; an id begins with its conversation's name."""
    passages, questions, judged = _read_beir(data / "locomo", limit)
    dates = {
        row["_id"]: row["session_date"]
        for row in read_jsonl(data / "locomo" / "corpus.jsonl")
        if row["_id"] in passages and row.get("session_date")
    }
    return Conversations.of(passages, dates, questions, judged)


def scifact(data: Path, limit: int | None) -> Retrieval:
    """Read SciFact: claims and the abstracts that bear on them."""
    return _beir(data / "scifact", limit, f"SciFact nDCG@{TOP}", ndcg)


def chunks(data: Path, limit: int | None) -> InChunks:
    """Read SciFact, to be cut into chunks."""
    metric = f"SciFact in chunks nDCG@{TOP}"
    return InChunks(_beir(data / "scifact", limit, metric, ndcg))


TASKS: dict[str, Callable[[Path, int | None], Task]] = {
    "stsb": stsb,
    "locomo": locomo,
    "conversations": conversations,
    "scifact": scifact,
    "chunks": chunks,
}


def spearman(a: Floats, b: Floats) -> float:
    """Correlate ranks, ties sharing their mean rank (Spearman 1904)."""
    return float(common.optional("scipy.stats").spearmanr(a, b).statistic)


def exact_top(questions: Floats, passages: Floats, k: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield for each question the k nearest passages, nearest first, by full comparison."""
    for start in range(0, len(questions), 256):
        scores = questions[start : start + 256] @ passages.T
        yield from np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(ranked: Sequence[int], relevant: dict[int, float]) -> float:
    """Give the share of the relevant passages that was found."""
    return sum(row in relevant for row in ranked) / len(relevant)


def _beir(
    folder: Path,
    limit: int | None,
    metric: str,
    score: Callable[[Sequence[int], dict[int, float]], float],
) -> Retrieval:
    passages, questions, judged = _read_beir(folder, limit)
    position = {name: row for row, name in enumerate(passages)}
    relevant = [{position[p]: grade for p, grade in judged[q].items()} for q in questions]
    return Retrieval(list(passages.values()), list(questions.values()), relevant, metric, score)


def _read_beir(
    folder: Path, limit: int | None
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """Read BEIR's layout (corpus.jsonl, queries.jsonl, qrels/test.tsv): texts by id, grades.

    Questions are those with a relevant passage; a limit keeps to the first and to
    their passages.
    """
    passages = {
        row["_id"]: f"{row.get('title', '')} {row['text']}".strip()
        for row in read_jsonl(_existing(folder / "corpus.jsonl"))
    }
    questions = {row["_id"]: row["text"] for row in read_jsonl(_existing(folder / "queries.jsonl"))}
    judged = _judgements(_existing(folder / "qrels" / "test.tsv"))
    asked = [name for name in questions if name in judged][:limit]
    if limit is not None:
        wanted = {passage for name in asked for passage in judged[name]}
        passages = {name: passages[name] for name in passages if name in wanted}
    return passages, {name: questions[name] for name in asked}, judged


def _judgements(path: Path) -> dict[str, dict[str, float]]:
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    with path.open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            question, passage, grade = line.rstrip("\n").split("\t")
            if float(grade) > 0:
                judged[question][passage] = float(grade)
    return judged


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputNotFound(f"the reference data has no {path}; leave its task out with --tasks.")
    return path


def _measure(
    model: str, precision: str, tasks: dict[str, Task], options: argparse.Namespace
) -> tuple[common.Result, dict[str, Floats]]:
    """Run all tasks with one model in one precision."""
    with _pool(model, precision, options) as pool:
        found = {name: task.measure(pool) for name, task in tasks.items()}
        row = {
            "model": model,
            "precision": precision,
            "tasks": {key: _told(score) for key, score in _by_key(found)},
            "texts_per_second": common.ratio(pool.work.texts, pool.work.seconds),
        }
    return row, {key: score.vectors for key, score in _by_key(found) if score.vectors is not None}


def _by_key(found: dict[str, list[Score]]) -> Iterator[tuple[str, Score]]:
    """Yield every score under its task's name, and its part where a task has several."""
    for name, scores in found.items():
        for score in scores:
            yield f"{name}-{score.part}" if score.part else name, score


def _told(score: Score) -> common.Result:
    told: common.Result = {"metric": score.metric, "value": score.value}
    if score.modes:
        told["modes"] = score.modes
    if score.by_conversation:
        told["by_conversation"] = score.by_conversation
    return told


@contextmanager
def _pool(model: str, precision: str, options: argparse.Namespace) -> Iterator[EmbeddingPool]:
    settings = {"precision": precision, "workers": options.workers}
    try:
        pool = EmbeddingPool(model, max_tokens=options.max_tokens, **settings)
    except UsageError:
        # A static model may have no such limit.
        pool = EmbeddingPool(model, **settings)
    with pool:
        yield pool


def _cosines(vectors: dict[str, Floats], reference: dict[str, Floats]) -> common.Result:
    """Compare with the first configuration, text by text."""
    if not reference:
        return {}
    found = [(_unit(vectors[name]) * _unit(reference[name])).sum(axis=1) for name in reference]
    cosines = np.concatenate(found)
    return {"mean_cosine": float(cosines.mean()), "min_cosine": float(cosines.min())}


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def show(result: common.Result) -> None:
    """Print a row a configuration."""
    done = [row for row in result["rows"] if "tasks" in row]
    metrics = [task["metric"] for task in done[0]["tasks"].values()] if done else []
    common.print_table(
        "Quality" + (f", first {result['limit']} rows only" if result["limit"] else ""),
        ["", *metrics, "mean cosine", "min cosine"],
        [_cells(row) for row in result["rows"]],
    )
    for row in done:
        show_modes(row)
    for row in result["rows"]:
        if "skipped" in row:
            print(f"not available: {row['model']} {row['precision']}: {row['skipped']}")


def _cells(row: common.Result) -> list[str]:
    name = f"{row['model']} {row['precision']}"
    if "skipped" in row:
        return [name, "not available"]
    values = [f"{task['value']:.4f}" for task in row["tasks"].values()]
    cosines = [f"{row[key]:.4f}" if key in row else "" for key in ("mean_cosine", "min_cosine")]
    return [name, *values, *cosines]


if __name__ == "__main__":
    sys.exit(common.run(main))
