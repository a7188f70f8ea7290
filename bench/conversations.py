"""LoCoMo as the memory layer holds it: each conversation a user, each turn a memory of its time.

For every mode: the share of questions whose first hit is evidence, recall@5 and @10 of the
evidence, nDCG@10, over all conversations and over the five that no weight was fixed on. The turns
have the times of their sessions; `hybrid, undated` is asked of the same turns without them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bench import common
from memworker import EmbeddingPool, Memory, Table
from memworker.memory import import_lines

TOP = 10
MODES: dict[str, dict[str, Any]] = {
    "vector": {"mode": "vector"},
    "text": {"mode": "text"},
    "hybrid": {"mode": "hybrid"},
    "hybrid, context 1": {"mode": "hybrid", "context": 1},
    "hybrid, context 2": {"mode": "hybrid", "context": 2},
}
# The weights of hybrid search are fixed on the first five of LoCoMo's ten conversations.
FIXED_ON = 5
_MEASURES = ("first hit", "recall@5", f"recall@{TOP}", f"nDCG@{TOP}")

Floats: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Score:
    """What one measure gave; a mean over questions, and the vectors where they can be compared.

    `modes` are the measures of a part, over all questions and over those held back.
    """

    metric: str
    value: float
    vectors: Floats | None = None
    part: str = ""
    by_conversation: dict[str, float] | None = None
    modes: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one conversation, and the ids of the turns that answer it."""

    conversation: str
    text: str
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversations:
    """Conversations by name, each its turns by id and when each was said, and the questions."""

    turns: dict[str, dict[str, str]]
    times: dict[str, datetime]
    questions: list[Question]

    @classmethod
    def of(
        cls,
        passages: Mapping[str, str],
        dates: Mapping[str, str],
        questions: Mapping[str, str],
        judged: Mapping[str, Mapping[str, float]],
    ) -> Conversations:
        """Group turns, in their order, and questions by the conversation that they begin with."""
        turns: dict[str, dict[str, str]] = defaultdict(dict)
        times = {}
        for place, (turn, text) in enumerate(passages.items()):
            turns[_conversation(turn)][turn] = text
            times[turn] = _said_at(dates.get(turn), place)
        asked = [
            Question(_conversation(name), text, frozenset(judged[name]))
            for name, text in questions.items()
        ]
        return cls(dict(turns), times, asked)

    def measure(self, pool: EmbeddingPool) -> list[Score]:
        found = []
        with TemporaryDirectory() as folder:
            self._remember(pool, folder, "dated", self.times)
            undated = {turn: _said_at(None, place) for place, turn in enumerate(self.times)}
            self._remember(pool, folder, "undated", undated)
            with Memory(folder, table="dated", pool=pool) as memory:
                found += [self._score(memory, name, how) for name, how in MODES.items()]
            with Memory(folder, table="undated", pool=pool) as memory:
                found.append(self._score(memory, "hybrid, undated", MODES["hybrid"]))
        return found

    def _remember(
        self, pool: EmbeddingPool, folder: str, table: str, times: Mapping[str, datetime]
    ) -> None:
        with Memory(folder, table=table, pool=pool):
            lines = [
                json.dumps(
                    {"id": turn, "memory": text, "user_id": user}
                    | {"created_at": times[turn].isoformat()}
                )
                for user, turns in self.turns.items()
                for turn, text in turns.items()
            ]
            done = import_lines(Table.open(folder, table), pool, lines, print)
            assert done.written == len(lines)

    def _score(self, memory: Memory, name: str, how: Mapping[str, Any]) -> Score:
        each: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        for asked in self.questions:
            scope = {"user_id": asked.conversation}
            hits = memory.search(asked.text, filters=scope, limit=TOP, **how)["results"]
            each[asked.conversation].append(_measured([hit["id"] for hit in hits], asked.evidence))
        held_back = list(each)[FIXED_ON:]
        modes = {"all": _means(each, list(each))}
        if held_back:
            modes["held back"] = _means(each, held_back)
        recall = _MEASURES.index(f"recall@{TOP}")
        by = {name: float(np.mean([row[recall] for row in rows])) for name, rows in each.items()}
        metric = f"LoCoMo a conversation, {name}, recall@{TOP}"
        value = modes["all"][f"recall@{TOP}"]
        return Score(metric, value, part=name, by_conversation=by, modes=modes)


def ndcg(ranked: Sequence[Any], relevant: Mapping[Any, float]) -> float:
    """Discount relevance by the logarithm of the rank, over the best order's (Jarvelin 2002)."""
    discounts = 1 / np.log2(np.arange(2, len(ranked) + 2))
    gains = np.array([relevant.get(row, 0.0) for row in ranked])
    best = np.array(sorted(relevant.values(), reverse=True)[: len(ranked)])
    most = float((best * discounts[: len(best)]).sum())
    return float((gains * discounts).sum()) / most if most else 0.0


def show_modes(row: common.Result) -> None:
    """Print a line a mode of one configuration."""
    told = [
        [task["metric"].split(", ", 1)[1].rpartition(", ")[0], which, *_cells(means)]
        for task in row["tasks"].values()
        for which, means in task.get("modes", {}).items()
    ]
    if told:
        title = f"LoCoMo a conversation, {row['model']} {row['precision']}"
        common.print_table(title, ["", "conversations", *_MEASURES], told)


def _cells(means: Mapping[str, float]) -> Iterator[str]:
    return (f"{means[name]:.3f}" for name in _MEASURES)


def _measured(ranked: list[str], evidence: frozenset[str]) -> tuple[float, ...]:
    first = float(bool(ranked) and ranked[0] in evidence)
    recalls = [len(evidence & set(ranked[:top])) / len(evidence) for top in (5, TOP)]
    return (first, *recalls, ndcg(_padded(ranked), dict.fromkeys(evidence, 1.0)))


def _padded(ranked: list[str]) -> list[str | None]:
    """Fill a short ranking up, for the best order has as many as were asked for."""
    return [*ranked, *[None] * (TOP - len(ranked))]


def _means(
    each: Mapping[str, list[tuple[float, ...]]], conversations: Sequence[str]
) -> dict[str, float]:
    rows = np.array([row for name in conversations for row in each[name]])
    return dict(zip(_MEASURES, rows.mean(axis=0).tolist(), strict=True))


def _said_at(date: str | None, place: int) -> datetime:
    """Give a turn the time of its session; a second later than the turn before it."""
    start = datetime.strptime(date, "%I:%M %p on %d %B, %Y") if date else datetime(2020, 1, 1)
    return start + timedelta(seconds=place)


def _conversation(name: str) -> str:
    return name.partition("/")[0]
