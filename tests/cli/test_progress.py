"""The live line: only where somebody looks, and never in the way."""

from __future__ import annotations

import io
import sys

import pytest

from memworker.cli.progress import shown


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), io.StringIO()], ids=["none", "closed", "file"])
def test_no_line_is_shown_where_stderr_is_no_terminal(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with shown(None) as observe:
        assert observe is None
