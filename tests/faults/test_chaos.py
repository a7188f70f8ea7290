"""The short form of scripts/chaos: some dozens of kills, seeded."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import lancedb
import pytest

from tests.faults import chaos
from tests.faults.harness import resume, write_input


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_lost_nothing_twice_under_random_kills(capsys):
    # By their number, not by time: on a slow machine too there must be some of each.
    code = chaos.main(["--seed", "4", "--kills", "8", "--rows", "12000", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told["complaints"]
    assert told["worker_kills"] > 0 and told["parent_kills"] > 0 and told["cases"] > 0


def test_a_lost_row_and_a_doubled_one_are_found(tmp_path):
    """The oracle itself: a table that was tampered with does not pass."""
    tally = chaos.Tally()
    settings = SimpleNamespace(rows=10, model="echo", reference=None)
    case = chaos._Case(settings, "oracle", tally, threading.Lock())
    oracle = write_input(tmp_path / "in.jsonl", 10)
    resume(tmp_path / "in.jsonl", case._db)
    case._compare(oracle, whole=True)
    assert tally.clean
    table = lancedb.connect(case._db).open_table("t")
    table.add(table.search().where("id = 'id-3'").to_arrow())
    table.delete("id = 'id-4'")
    table.update(where="id = 'id-5'", values={"text": "another"})
    case._compare(oracle, whole=True)
    assert (tally.duplicated, tally.lost, tally.wrong > 0) == (1, 1, True)
