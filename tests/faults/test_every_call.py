"""The short form of scripts/faults: calls whose failing once broke something, and some of all."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace

import lancedb
import pytest

from memworker.store.lance import table_names
from tests.faults.every_call import shim
from tests.faults.every_call.cases import Case, sites
from tests.faults.every_call.driver import attempted, driver, said
from tests.faults.every_call.scenario import database, forced
from tests.faults.every_call.scenarios import SCENARIOS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shim.compiler() is None, reason="needs a C compiler"),
]

# Another one tries other calls; the full form tries all.
SEED = os.environ.get("MEMWORKER_FAULTS_SEED", "1")
SHORT = (
    *("ingest", "append-durable", "ingest-model", "memory", "import"),
    *("optimize", "index", "reembed"),
)
SAMPLE = 4

# By the file that is concerned, so that they stay what they are when calls come and go.
ONCE_BROKEN = [
    # The last write of a data file: LanceDB lost its error, and the table was dead.
    *(f"ingest:write~.lance/data/@{n}:{how}" for n in (1, 4) for how in ("eio", "enospc-on")),
    "memory:write~.lance/data/@4:enospc",
    "append-durable:write~.lance/data/@4:short-enospc-on",
    # What was written may never reach the disk, though the next fsync succeeds.
    "append-durable:fsync~.lance/data/@1:eio",
    "append-durable:fsync~.manifest@1:enospc",
    "optimize-durable:fsync~.manifest@1:eio",
    "optimize-durable:fsync~.txn@1:enospc",
    "index-durable:fsync~_invert.lance@1:eio",
    # The commit came, and its error as well.
    "ingest:link~.manifest@2:done-eio",
    "memory:link~.manifest@1:done-eio",
    # A lock that cannot be let go in words is free all the same.
    "ingest:flock~job.lock@2:eio",
    "append:close~commit.lock@1:eio",
    # Earlier rows that cannot be forced fail a commit before it is made.
    "memory-durable:fsync@1:eio",
    # A worker that cannot have its memory says so in words.
    "ingest:mmap@2:eio",
    # A panic of LanceDB's was shown, and taken for a damaged file.
    "index:mkdir~/.tmp@1:eio",
    # Bare errors of the system.
    "index-durable:open@35:eio",
    "append:open~journal.jsonl@1:eio",
    "append:write~journal.jsonl@2:enospc",
    "append:write~rejects.jsonl@1:enospc",
    "append:close~rejects.jsonl@1:eio",
    "export:write~out.jsonl@2:enospc",
    "reembed:write~space.json@1:enospc",
    "reembed:truncate~texts.xxh3@1:eio",
    "reembed:open~vectors.f32@2:eio-on",
    "memory:open~.manifest@30:eio-on",
]


@pytest.fixture(scope="module")
def lane():
    with driver() as lane:
        yield lane


@pytest.mark.parametrize("name", ONCE_BROKEN)
def test_what_once_broke(lane, name):
    result = attempted(lane, Case.of(name))
    assert result.acted, "no such call"
    assert not result.violations, result.site


@pytest.mark.parametrize("scenario", SHORT)
def test_some_of_all_calls(lane, scenario):
    cases = list(sites(scenario, lane.count(scenario)))
    for case in random.Random(f"{SEED} {scenario}").sample(cases, SAMPLE):
        result = attempted(lane, case)
        assert not result.violations, (case.name, result.site)


@pytest.mark.parametrize("scenario", SHORT)
def test_what_was_not_done_and_what_was_lost_is_told(lane, scenario, tmp_path):
    """The oracles themselves: they believe a job that was done, and no other."""
    done, undone = tmp_path / "done", tmp_path / "undone"
    for folder in (done, undone):
        shutil.copytree(lane.template(scenario), folder)
    outcome = said(done, lane.child(scenario, done, shim.NOTHING))
    check = SCENARIOS[scenario].check
    assert not list(check(done, outcome, lane.bench))
    if (done / "told").exists():
        shutil.copy(done / "told", undone)
    assert list(check(undone, outcome, lane.bench))
    (table,) = table_names(database(done))
    opened = lancedb.connect(database(done)).open_table(table)
    (row,) = opened.search().limit(1).to_list()
    opened.delete(f"id = '{row['id']}'")
    assert list(check(done, outcome, lane.bench))


def test_what_would_not_survive_a_power_loss_is_told(lane, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(lane.template("append-durable"), folder)
    lane.child("append-durable", folder, shim.NOTHING)
    calls = list(lane.calls())
    assert not list(forced(folder, "t", calls))
    syncs = [call for call in calls if call.kind is shim.Kind.FSYNC]
    for left_out in ("/data/", "/data", ".manifest", "/t.lance"):
        found = [call for call in syncs if left_out in call.path]
        assert found
        assert list(forced(folder, "t", [call for call in calls if call not in found]))
    again = [call for call in syncs if call.path.endswith(".manifest")][-1]
    failed = [replace(call, outcome=5) if call is again else call for call in calls]
    assert list(forced(folder, "t", [*failed, again]))
