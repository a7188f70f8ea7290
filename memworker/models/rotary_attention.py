"""Attention where texts may be long: all scores at once, or block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from memworker.models.onnx_file import GraphWriter

# Texts of more tokens get their scores so many queries at a time.
AT_ONCE, BLOCK = 1024, 128


class ScoreShape(Protocol):
    """What scores are multiplied by, and whether keys behind a query's place are hidden."""

    @property
    def scale(self) -> float: ...

    @property
    def causal(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Attention:
    """Writes softmax(QK' scale)V a text and head, float32[n, heads, tokens, head].

    Keys more than `window` away are not seen (0: all are). `rows` are queries, keys and
    values, ``[tokens, n, heads, head]``; where they are `alone`, queries are one a text, the
    one that is pooled.
    """

    at: str
    shape: ScoreShape
    window: int
    rows: tuple[str, str, str]
    alone: bool

    def at_once(self, graph: GraphWriter) -> str:
        """Compute all scores, and mask them unless nothing is hidden."""
        query, key, value = self.rows
        scores = self._scores(graph, query, key, f"{self.at}.scores")

        def plain(inner: GraphWriter) -> str:
            return inner.op("Softmax", scores, name=f"{self.at}.shares_all", axis=-1)

        def masked(inner: GraphWriter) -> str:
            sums = inner.op("Add", scores, mask, name=f"{self.at}.scores_masked")
            return inner.op("Softmax", sums, name=f"{self.at}.shares_masked", axis=-1)

        unmasked, mask = self._mask()
        if unmasked:
            shares = graph.either(unmasked, plain, masked, name=f"{self.at}.shares")
        else:
            shares = masked(graph)
        return graph.fused(
            "FusedMatMul", shares, value, name=f"{self.at}.context_at_once", transBatchB=1
        )

    def in_blocks(self, graph: GraphWriter) -> str:
        """Compute the scores of BLOCK tokens after another, of keys that they may see alone.

        All scores of a long text at once would take gigabytes. The last block overlaps the
        one before, for all have one shape.
        """
        at = f"{self.at}.blocks"
        stacked = graph.repeat("blocks", self._block, name=at)
        row = graph.op("Reshape", stacked, "by_query_head", name=f"{at}.stacked")
        first = graph.op("Slice", row, "int0", "before_last_row", "int0", name=f"{at}.first")
        last = graph.op("Slice", row, "last_rest_row", "far_end", "int0", name=f"{at}.last")
        whole = graph.op("Concat", first, last, name=f"{at}.whole", axis=0)
        return graph.op("Transpose", whole, name=f"{at}.context", perm=[1, 2, 0, 3])

    def _block(self, graph: GraphWriter, turn: str) -> str:
        at, window = f"{self.at}.block", self.window
        query, key, value = self.rows
        start = graph.op("Mul", turn, "block", name=f"{at}.start_of_turn")
        start = graph.op("Min", start, "last_block", name=f"{at}.start")
        end = graph.op("Add", start, "block", name=f"{at}.end")
        low, high = "zero", end if self.shape.causal else "length"
        if window:
            low = graph.op("Sub", start, f"window{window}", name=f"{at}.low_of_window")
            low = graph.op("Max", low, "zero", name=f"{at}.low")
        if window and not self.shape.causal:
            high = graph.op("Add", end, f"window{window}", name=f"{at}.high_of_window")
            high = graph.op("Min", high, "length", name=f"{at}.high")
        asking = self._slice(graph, f"{at}.asking", query, start, end)
        asked = self._slice(graph, f"{at}.asked", key, low, high)
        given = self._slice(graph, f"{at}.given", value, low, high)
        scores = self._scores(graph, asking, asked, f"{at}.scores")
        mask = self._slice(graph, f"{at}.mask", "mask_scores", low, high, axis=3)
        scores = graph.op("Add", scores, mask, name=f"{at}.scores_masked")
        if window or self.shape.causal:
            asking_at = graph.op("Add", "block_places", start, name=f"{at}.asking_at")
            asked_at = graph.op("Range", low, high, "one_place", name=f"{at}.asked_at")
            behind = graph.op("Sub", asking_at, asked_at, name=f"{at}.behind")
            unseen = unseen_scores(graph, at, self.shape.causal, window, behind)
            scores = graph.op("Add", scores, unseen, name=f"{at}.scores_seen")
        shares = graph.op("Softmax", scores, name=f"{at}.shares", axis=-1)
        context = graph.fused("FusedMatMul", shares, given, name=f"{at}.context", transBatchB=1)
        return graph.op("Transpose", context, name=f"{at}.by_token", perm=[2, 0, 1, 3])

    def _scores(self, graph: GraphWriter, query: str, key: str, name: str) -> str:
        trans = {"transBatchA": 1, "transBatchB": 1, "transB": 1}
        return graph.fused("FusedMatMul", query, key, name=name, alpha=self.shape.scale, **trans)

    def _slice(
        self, graph: GraphWriter, at: str, whole: str, low: str, high: str, axis: int = 0
    ) -> str:
        begin = graph.op("Reshape", low, "int1", name=f"{at}.begin")
        end = graph.op("Reshape", high, "int1", name=f"{at}.end")
        return graph.op("Slice", whole, begin, end, f"int{axis}", name=at)

    def _mask(self) -> tuple[str, str]:
        """Name the condition under which scores need no mask, "" for never, and the mask."""
        window = self.window
        if self.alone:
            return "unpadded", "mask_scores"
        if self.shape.causal:
            return "", f"seen{window}"
        if window:
            return f"all_seen{window}", f"seen{window}"
        return "unpadded", "mask_scores"


def add_blocks(graph: GraphWriter) -> None:
    """Add what the turns of `Attention.in_blocks` name, given ``length`` and ``length_row``."""
    import numpy as np

    for name, value in (("int0", [0]), ("int1", [1]), ("int3", [3]), ("far_end", [2**62])):
        graph.weight(name, np.array(value, np.int64))
    graph.weight("block", np.array(BLOCK, np.int64))
    graph.weight("block_less_one", np.array(BLOCK - 1, np.int64))
    more = graph.op("Add", "length", "block_less_one", name="length_and_more")
    graph.op("Div", more, "block", name="blocks")
    graph.op("Sub", "length", "block", name="last_block")
    whole = graph.op("Sub", "blocks", "one_place", name="whole_blocks")
    before = graph.op("Mul", whole, "block", name="before_last_block")
    graph.op("Reshape", before, "int1", name="before_last_row")
    rest = graph.op("Sub", before, "length", name="behind_whole_blocks")
    graph.op("Reshape", rest, "int1", name="last_rest_row")
    most = graph.weight("at_once", np.array([AT_ONCE], np.int64))
    short = graph.op("LessOrEqual", "length_row", most, name="short_row")
    graph.op("Squeeze", short, name="short")


def unseen_scores(graph: GraphWriter, at: str, causal: bool, window: int, behind: str) -> str:
    """Add what is added to scores, given by how far keys stand behind their queries."""
    far = behind if causal else graph.op("Abs", behind, name=f"{at}.away")
    unseen = ""
    if window:
        unseen = graph.op("Greater", far, f"window{window}", name=f"{at}.far")
    if causal:
        ahead = graph.op("Less", behind, "zero", name=f"{at}.ahead")
        unseen = graph.op("Or", unseen, ahead, name=f"{at}.unseen") if unseen else ahead
    return graph.op("Where", unseen, "masked", "nought", name=f"{at}.scores_unseen")
