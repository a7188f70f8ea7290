"""Whose pool it is, and what is said when a framework is missing."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest

from memworker.errors import PoolClosed, UsageError
from memworker.integrations.pools import PoolSource

ECHO = {"model": "echo", "workers": 1}


def test_a_given_pool_is_left_open(kinds):
    source = PoolSource(kinds, {})
    source.close()
    assert len(source.embed(["a", "b"], "passage")) == 2


def test_an_own_pool_starts_at_the_first_use_and_ends_with_close():
    source = PoolSource(None, ECHO)
    assert source.embed(["four"], "query")[0][1] == 4.0
    (worker,) = source.get().worker_pids()
    assert source.get() is source.get()
    source.close()
    assert not psutil.pid_exists(worker)
    with pytest.raises(PoolClosed, match="make a new one"):
        source.embed(["four"], "query")


def test_an_own_pool_ends_with_its_adapter():
    source = PoolSource(None, ECHO)
    (worker,) = source.get().start().worker_pids()
    del source
    gc.collect()
    assert not psutil.pid_exists(worker)


def test_a_pool_and_options_for_another_are_refused(kinds):
    with pytest.raises(UsageError, match="model, workers"):
        PoolSource(kinds, ECHO)


ADAPTERS = {
    "langchain": ("langchain_core", ["MemworkerEmbeddings"]),
    "haystack": ("haystack", ["MemworkerTextEmbedder", "MemworkerDocumentEmbedder"]),
    "llama_index": ("llama_index.core", ["MemworkerEmbedding"]),
    "lancedb": ("lancedb", ["MemworkerFunction"]),
    "mem0": ("mem0", ["MemworkerEmbedder", "MemworkerVectorStore"]),
}


@pytest.mark.parametrize("option", ["batch_size", "prefix", "modle"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_unknown_option_is_refused_by_its_name_when_an_adapter_is_made(adapter, option):
    package, names = ADAPTERS[adapter]
    pytest.importorskip(package, reason=f'needs pip install "memworker[{adapter}]"')
    module = importlib.import_module(f"memworker.integrations.{adapter}")
    for name in names:
        # A ValueError of ours or pydantic's, a TypeError where Python itself knows better.
        with pytest.raises((ValueError, TypeError), match=option):
            getattr(module, name)(**{option: 1})


def test_the_option_that_was_meant_is_told():
    with pytest.raises(UsageError, match=r"did you mean 'model'\?.*precision"):
        PoolSource(None, {"modle": "echo"})
    with pytest.raises(UsageError, match="not a str"):
        PoolSource("all-MiniLM-L6-v2", {})


def test_a_pickled_copy_makes_a_pool_of_its_own():
    source = PoolSource(None, ECHO)
    copied = pickle.loads(pickle.dumps(source))
    assert copied.get() is not source.get()
    assert copied.embed(["four"], "passage") == source.embed(["four"], "passage")
    source.close()
    copied.close()


def test_a_given_pool_cannot_be_pickled_but_its_copies_share_it(kinds):
    source = PoolSource(kinds, {})
    with pytest.raises(TypeError, match="options"):
        pickle.dumps(source)
    assert copy.deepcopy({"source": source})["source"].get() is kinds


def test_many_coroutines_share_one_own_pool():
    async def embed_all(source):
        each = (source.embed_async(["x" * n], "passage") for n in range(50))
        return await asyncio.gather(*each)

    source = PoolSource(None, ECHO)
    found = asyncio.run(embed_all(source))
    assert [vectors[0][1] for vectors in found] == list(range(50))
    assert len(source.get().worker_pids()) == 1
    source.close()


@pytest.mark.parametrize(
    "adapter, package, extra",
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
        ("mem0", "mem0", "mem0"),
    ],
)
def test_a_missing_framework_is_named_with_the_command(adapter, package, extra):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import memworker.integrations\n"
        f"try: import memworker.integrations.{adapter}\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert repr(package) in done.stdout
    assert f'pip install "memworker[{extra}]"' in done.stdout


def test_the_commands_name_extras_that_there_are():
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    adapters = (root / "memworker" / "integrations").glob("*.py")
    named = {
        extra
        for adapter in adapters
        for extra in re.findall(r'with framework\("([^"]+)"\)', adapter.read_text())
    }
    assert {"langchain", "mem0", "mcp"} <= named <= set(extras)
