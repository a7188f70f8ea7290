"""A pool without a model for all, and a Memory of one's own for each test."""

from __future__ import annotations

import pytest

from memworker import EmbeddingPool, Memory


@pytest.fixture(scope="module")
def echo():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


@pytest.fixture
def db(tmp_path):
    return tmp_path / "db"


@pytest.fixture
def memory(echo, db):
    with Memory(db, pool=echo) as memory:
        yield memory
