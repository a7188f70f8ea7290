"""Pools to embed through; no framework may call home."""

from __future__ import annotations

import os

import pytest

from memworker import EmbeddingPool
from tests.integrations.kinds import Kinds

# Read when the frameworks are imported, which is after this file.
os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "MEM0_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false",
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
