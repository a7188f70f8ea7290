"""Parts of an input as a source of Ray Data's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from memworker.ingestion.cluster.parts import InputPart, read_part


class Parts(Datasource):
    """Each part a task, which Ray runs where there is room, and again where a node is lost."""

    def __init__(self, parts: Sequence[InputPart]) -> None:
        super().__init__()
        self._parts = parts

    def get_name(self) -> str:
        return "memworker"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(part.bytes for part in self._parts)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Give a task a part, however many Ray would like."""
        return [
            ReadTask(partial(read_part, part), BlockMetadata(None, part.bytes, None, None))
            for part in self._parts
        ]
