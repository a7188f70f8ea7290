"""Pools to embed through; no framework may call home."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

from memworker import EmbeddingPool
from tests.integrations.kinds import Kinds

# Mem0 writes there for as long as the process runs.
MEM0_DIR = tempfile.mkdtemp(prefix="memworker-test-mem0-")
atexit.register(shutil.rmtree, MEM0_DIR, ignore_errors=True)

# Read when the frameworks are imported, which is after this file.
os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "MEM0_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false",
    "MEM0_DIR": MEM0_DIR,
}


@pytest.fixture(scope="module")
def kinds():
    """A pool whose vectors tell documents from queries; see `told`."""
    with EmbeddingPool(Kinds(), workers=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def pool():
    """A pool of the default model."""
    with EmbeddingPool(workers=1) as made:
        yield made
