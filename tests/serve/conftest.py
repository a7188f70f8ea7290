"""Servers that a whole module shares."""

from __future__ import annotations

import pytest

from tests.serve.processes import serving


@pytest.fixture(scope="module")
def echo():
    """A server of the echo encoder."""
    with serving("--model", "echo", "--accept-token-ids") as served:
        yield served


@pytest.fixture(scope="module")
def minilm():
    """A server of the real model."""
    with serving("--accept-token-ids") as served:
        yield served
