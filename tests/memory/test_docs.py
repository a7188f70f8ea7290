"""What docs/MEMORY.md says can be run, can be run, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from memworker import AsyncMemory, Memory
from memworker.memory.drafts import metadata_json
from memworker.store import filters, policy
from tests import PATIENCE_S

PAGE = (Path(__file__).parents[2] / "docs" / "MEMORY.md").read_text()
# The last block of either language is about a Mem0 that is there already.
*SNIPPETS, FROM_MEM0 = re.findall(r"```python\n(.*?)```", PAGE, re.S)
*COMMANDS, IMPORT = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
METHODS = {name for name in vars(Memory) if not name.startswith("_")}

OLD = """
import mem0
from memworker import EmbeddingPool
from memworker.integrations.mem0 import MemworkerEmbedder, MemworkerVectorStore

config = {
    "vector_store": {
        "provider": "qdrant",
        "config": {"path": "qdrant", "embedding_model_dims": 384},
    },
    "embedder": {"provider": "lmstudio", "config": {"model": "all-MiniLM-L6-v2"}},
    "llm": {"provider": "openai", "config": {"api_key": "unused"}},
}
pool = EmbeddingPool("echo", workers=1)
old = mem0.Memory.from_config(config)
old.vector_store = MemworkerVectorStore("old-db", pool=pool)
old.embedding_model = MemworkerEmbedder(pool=pool)
old.add("likes the sea", user_id="alice", metadata={"n": 1}, infer=False)
"""


def run(command, folder):
    """Run a process there; returns the lines that it printed."""
    binaries = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "MEM0_DIR": str(folder / "mem0"),
        "MEM0_TELEMETRY": "false",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def bash(script, folder):
    return run(["bash", "-euo", "pipefail", "-c", script], folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every snippet of the page has been run, in its order; what they printed is beside."""
    made = tmp_path_factory.mktemp("page")
    printed = run([sys.executable, "-c", "\n".join(SNIPPETS)], made)
    (made / "printed").write_text("\n".join(printed))
    return made


def test_the_snippets_print_what_the_page_says(folder):
    told = re.findall(r"(?:^ *|^ +print\(.*\)  )# (.*)$", "\n".join(SNIPPETS), re.M)
    assert len(told) >= len(SNIPPETS)
    assert (folder / "printed").read_text().splitlines() == told


def test_the_commands_of_the_page_do_what_it_says(folder):
    told = "\n".join(bash("\n".join(COMMANDS), folder))
    for words in ("has a dog", "4 deleted", "0 written", "vectors of all-MiniLM-L6-v2 int8"):
        assert words in told, told


def test_memories_come_along_from_mem0(tmp_path):
    if find_spec("mem0") is None:
        pytest.skip('needs pip install "memworker[mem0]"')
    run([sys.executable, "-c", OLD + FROM_MEM0 + "\npool.close()"], tmp_path)
    told = "\n".join(bash(IMPORT, tmp_path))
    assert "1 written" in told and "likes the sea" in told
    with Memory(tmp_path / "new-db") as memory:
        (record,) = memory.get_all(filters={"user_id": "alice"})["results"]
    assert record["metadata"] == {"n": 1, "role": "user"}


def test_the_page_names_every_method_and_option():
    for name in METHODS:
        assert f"`{name}" in PAGE, name
    assert {name for name in vars(AsyncMemory) if not name.startswith("_")} == METHODS
    for operator in (*filters.OPERATORS, *filters.LOGIC, *filters.TIME_COLUMNS - {"superseded_at"}):
        assert operator in PAGE, operator


def test_the_numbers_of_the_page_are_those_of_the_code():
    assert f"{policy.SCALAR_MIN_ROWS:,} rows" in PAGE
    assert f"by vector from {policy.INDEX_MIN_ROWS:,}" in PAGE
    assert policy.KEEP_VERSIONS.total_seconds() == 5 * 60
    assert metadata_json({"n": 2**63}) and "beyond 64 bits" in PAGE
