"""An index that --memory, or what is free, leaves no room for is not built, and that is said."""

from __future__ import annotations

import re

from memworker import Table, ingest
from memworker.ingestion import job
from memworker.ingestion.export import embed_to_file
from memworker.pool import machine
from memworker.pool.budget import parse_bytes
from memworker.pool.echo import EchoLoader

ROWS = 50_000
DIM = 512


def test_too_little_memory_for_the_index_is_told_with_the_need_and_the_option(tmp_path):
    rows = ({"text": f"text {number}"} for number in range(ROWS))
    done = ingest(rows, db=tmp_path / "db", table="t", model=EchoLoader(DIM), memory="360MB")
    assert done.written == ROWS
    (note,) = [note for note in done.notes if "no index was built" in note]
    table = Table.open(tmp_path / "db", "t")
    assert table.maintenance.wants_index("vector")
    need = table.maintenance.index_bytes()
    assert f"about {need >> 20:,} MiB" in note
    assert "--memory (memory=) allows 343 MiB" in note
    # As much as it names is enough.
    allow = re.search(r"Allow ([\d,]+MB)", note)[1].replace(",", "")
    assert parse_bytes(allow) > need
    again = ingest(
        [{"text": "one more"}], db=tmp_path / "db", table="t", model=EchoLoader(DIM), memory=allow
    )
    assert again.notes == ()
    assert not table.maintenance.wants_index("vector")


def test_what_others_hold_counts_too():
    there = machine.free_bytes()
    assert job._too_little(1 << 20, None) is None
    assert "MiB of memory are free now" in job._too_little(there + (1 << 30), "100000GB")
    assert "this machine has" in job._too_little(machine.memory_bytes(), None)


def test_what_had_to_be_less_is_in_the_report(tmp_path):
    given = [{"text": "a"}]
    done = ingest(given, db=tmp_path / "db", table="t", model="echo", workers=4, memory="330MB")
    (note,) = done.notes
    assert "within the 314 MiB that memory= (--memory) allows, where 4 workers would need" in note
    assert "2 windows under way instead of 3" in note
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n')
    out = tmp_path / "out.npy"
    assert embed_to_file([path], out, model="echo", workers=9, memory="200MB").notes
    assert embed_to_file([path], out, model="echo", workers=1).notes == ()
