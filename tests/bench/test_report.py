"""The page of results: nothing that somebody else wrote is written over."""

from __future__ import annotations

import pytest

from bench import report
from memworker.errors import UsageError


def test_nothing_of_others_is_written_over(tmp_path):
    precious = tmp_path / "notes.html"
    precious.write_text("<!doctype html><title>mine</title>")
    saved = tmp_path / "results"
    saved.mkdir()
    result = saved / "throughput.json"
    result.write_text("{}")
    for out in (precious, result, tmp_path):
        with pytest.raises(UsageError, match="--out"):
            report.main(["--out", str(out), "--save", str(saved), "--json", str(result)])
    assert precious.read_text().endswith("mine</title>") and result.read_text() == "{}"
