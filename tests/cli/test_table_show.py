"""``memworker table show`` as people and scripts call it."""

from __future__ import annotations

import json

import pytest

from memworker.errors import UsageError
from memworker.store import Table
from tests.cli.test_table import run
from tests.store.helpers import SPACE, numbered


def test_show_counts_and_draws(tmp_path):
    table = Table.open_or_create(tmp_path / "db", "notes", SPACE)
    table.append(numbered(0, 9))
    command = ("show", "--db", str(table.db), "--table", "notes")
    shown = run(*command)
    assert "rows         9" in shown and "characters   6 to 6, median 6" in shown
    page = tmp_path / "page.html"
    drawn = run(*command, "--plot", str(page), "--no-texts", "--sample", "5")
    assert "a map of 5 rows" in drawn and page.read_bytes().startswith(b"<!doctype html>")
    with pytest.raises(UsageError, match="--plot"):
        run(*command, "--no-texts")
    told = json.loads(run(*command, "--json", "--where", "id=id-3"))
    assert (told["rows"], told["lengths"]["bins"], told["plot"]) == (1, [[6, 6, 1]], None)
