"""Mem0 with memworker under it: its store is a table, its embedder a pool. No key, no network.

pip install "memworker[mem0]"
python examples/mem0_agent.py
"""

from __future__ import annotations

import os

os.environ.setdefault("MEM0_TELEMETRY", "false")  # before Mem0 is imported

from mem0 import Memory  # noqa: E402

from memworker import EmbeddingPool  # noqa: E402
from memworker.integrations.mem0 import MemworkerEmbedder, MemworkerVectorStore  # noqa: E402

# Mem0 makes the store of its config first; it stays empty.
CONFIG = {
    "vector_store": {
        "provider": "qdrant",
        "config": {"path": "mem0-own", "embedding_model_dims": 384},
    },
    "embedder": {"provider": "lmstudio", "config": {"model": "all-MiniLM-L6-v2"}},
    "llm": {"provider": "openai", "config": {"api_key": "unused with infer=False"}},
}


def main() -> None:
    """Store what two users said, and search one of them."""
    with EmbeddingPool() as pool, Memory.from_config(CONFIG) as memory:
        memory.vector_store = MemworkerVectorStore("mem0-db", pool=pool)
        memory.embedding_model = MemworkerEmbedder(pool=pool)
        # With a language model in the config, leave infer=False out: Mem0 then picks the facts.
        memory.add("I am allergic to peanuts", user_id="alice", infer=False)
        memory.add("I play the cello on Sundays", user_id="alice", infer=False)
        memory.add("I sell peanuts", user_id="bob", infer=False)
        found = memory.search("dangerous food", filters={"user_id": "alice"})
        for each in found["results"]:
            print(f"{each['score']:.2f} {each['memory']}")


if __name__ == "__main__":
    main()
