"""Search with the default model, where meaning matters."""

from __future__ import annotations

from memworker import Memory
from tests.memory.helpers import ALICE, texts


def test_the_memory_that_answers_is_found_by_meaning_and_not_in_others_scopes(tmp_path):
    memories = [
        "Alice is allergic to peanuts",
        "The quarterly report is due on Friday",
        "She adopted a grey kitten last spring",
        "Their flight to Lisbon leaves at noon",
    ]
    with Memory(tmp_path, workers=1) as memory:
        memory.add_batch(memories, **ALICE)
        memory.add("A pet cat", user_id="bob")
        for mode in ("vector", "hybrid"):
            found = memory.search("Does she have a pet?", filters=ALICE, limit=1, mode=mode)
            assert texts(found) == [memories[2]]
        nuts = memory.search("Which food makes Alice ill?", filters=ALICE, threshold=0.2)
        assert texts(nuts)[0] == memories[0]
        assert memory.search("peanuts", filters=ALICE, threshold=0.99) == {"results": []}
