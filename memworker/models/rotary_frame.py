"""What all layers of a graph with rotary positions name: places, masks, tables, shapes."""

from __future__ import annotations

from memworker.models import parts
from memworker.models.onnx_file import GraphWriter
from memworker.models.rotary import RotaryShape, angles
from memworker.models.rotary_attention import AT_ONCE, BLOCK, add_blocks, unseen_scores
from memworker.models.spec import Pooling

# What is added to the score of a masked token: its share becomes 0, and all masked stay finite.
_MASKED = -1e4


class Frame:
    """Adds what all layers name: ids, places, shapes of rows, masks, tables of angles."""

    def __init__(self, graph: GraphWriter, shape: RotaryShape, pooling: Pooling) -> None:
        self._graph, self._shape, self._pooling = graph, shape, pooling

    def add(self) -> None:
        graph, shape = self._graph, self._shape
        ids = graph.op("Transpose", "input_ids", name="ids", perm=[1, 0])
        graph.op("Reshape", ids, parts.ints(graph, -1), name="ids_flat")
        graph.op("Shape", "input_ids", name="texts", start=0, end=1)
        graph.op("Shape", ids, name="ids_shape")
        for kind, heads in (("query", shape.heads), ("key", shape.key_heads)):
            self._view(f"by_{kind}_head", heads, shape.head)
            self._view(f"by_{kind}_row", heads * shape.head)
        self._view("by_text", shape.hidden)
        for at, turn in enumerate(shape.turns):
            cosines, sines = angles(shape, turn)
            graph.weight(f"cosines{at}", cosines)
            graph.weight(f"sines{at}", sines)
        self._places()
        self._padding()
        self._blocks()
        for window in sorted({reach.window for reach in shape.reach}):
            self._window(window)

    def _view(self, name: str, *sizes: int) -> None:
        graph = self._graph
        inputs = (parts.ints(graph, -1), "texts", parts.ints(graph, *sizes))
        graph.op("Concat", *inputs, name=name, axis=0)

    def _places(self) -> None:
        """Add each row's place in its text: int64[tokens, n], and [1, n] for those pooled."""
        graph = self._graph
        length = graph.op("Shape", "input_ids", name="length_row", start=1, end=2)
        length = graph.op("Squeeze", length, name="length")
        zero = graph.op("Squeeze", parts.ints(graph, 0), name="zero")
        one = graph.op("Squeeze", parts.ints(graph, 1), name="one_place")
        row = graph.op("Range", zero, length, one, name="places_row")
        column = graph.op("Unsqueeze", row, parts.ints(graph, 1), name="places_column")
        graph.op("Expand", column, "ids_shape", name="places")
        if self._pooling is Pooling.LAST:
            parts.last_index(graph)
            graph.op("Unsqueeze", "last_place", parts.ints(graph, 0), name="places_pooled")
        elif self._pooling is Pooling.CLS:
            begin, end = parts.ints(graph, 0), parts.ints(graph, 1)
            graph.op("Slice", "places", begin, end, parts.ints(graph, 0), name="places_pooled")

    def _padding(self) -> None:
        graph = self._graph
        mask = graph.op("Cast", "attention_mask", name="mask", to=parts.FLOAT)
        below = graph.op("Sub", parts.number(graph, "one", 1.0), mask, name="mask_below")
        below = graph.op("Mul", below, parts.number(graph, "masked", _MASKED), name="mask_least")
        graph.op("Unsqueeze", below, parts.ints(graph, 1, 2), name="mask_scores")
        least = graph.op("ReduceMin", mask, name="mask_least_of_all", keepdims=0)
        graph.op("Cast", least, name="unpadded", to=parts.BOOL)
        # The whole mask of a long text would be large, and nothing reads it.
        zero, most = parts.ints(graph, 0), parts.ints(graph, AT_ONCE)
        row = graph.op("Slice", "places_row", zero, most, zero, name="row_short")
        graph.op("Unsqueeze", row, parts.ints(graph, 1), name="column_short")
        graph.op("Slice", "mask_scores", zero, most, parts.ints(graph, 3), name="mask_short")

    def _blocks(self) -> None:
        """Add what the turns of `Attention.in_blocks` name."""
        import numpy as np

        graph = self._graph
        add_blocks(graph)
        windows = {reach.window for reach in self._shape.reach if reach.window}
        if windows or self._shape.causal:
            graph.weight("block_places", np.arange(BLOCK, dtype=np.int64)[:, None])
            parts.number(graph, "nought", 0.0)
        for window in windows:
            graph.weight(f"window{window}", np.array(window, np.int64))

    def _window(self, window: int) -> None:
        """Add what is added to scores where keys too far away, or ahead, are not seen."""
        graph, causal, at = self._graph, self._shape.causal, f"seen{window}"
        if not window and not causal:
            return
        behind = graph.op("Sub", "column_short", "row_short", name=f"{at}.behind")
        unseen = unseen_scores(graph, at, causal, window, behind)
        if causal:
            graph.op("Identity", unseen, name=at)
            return
        most = parts.ints(graph, window + 1)
        fits = graph.op("LessOrEqual", "length_row", most, name=f"{at}.fits_row")
        fits = graph.op("Squeeze", fits, name=f"{at}.fits")
        graph.op("And", fits, "unpadded", name=f"all_{at}")

        def padding(inner: GraphWriter) -> str:
            return inner.op("Identity", "mask_short", name=f"{at}.padding")

        def both(inner: GraphWriter) -> str:
            return inner.op("Add", "mask_short", unseen, name=f"{at}.both")

        graph.either(f"{at}.fits", padding, both, name=at)
