"""Optimising: each step by itself, each told; what fails stops nothing else."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from memworker import Memory
from memworker.cli.table_care import optimize as optimize_command
from memworker.errors import NotOptimized, StoreError
from memworker.store import Step, Table, VectorSpace, index, policy, records
from memworker.store.optimize import COMPACT, INDEX, VERSIONS, StepOutcome
from memworker.store.policy import FRAGMENTS_MAX, SCALAR_COLUMNS, SCALAR_MIN_ROWS
from memworker.store.reembed import build_indices
from memworker.store.staged import Staged
from tests.faults.harness import memworker, wait_for
from tests.store import damaging
from tests.store.helpers import SPACE, index_scopes, numbered, texts_by_id
from tests.store.test_upkeep import many, single_rows

NONE = timedelta(0)


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "db", "t", SPACE)


def no_index_can_be_built(table):
    """Put a file where LanceDB makes the folder of its indices."""
    folder = table.db / "t.lance" / "_indices"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")


def outcomes(report):
    return [(did.step, did.column, did.outcome) for did in report.steps]


def test_a_small_table_is_compacted_and_cleaned(table):
    for start in range(0, 30, 10):
        table.append(numbered(start, start + 10))
    done = table.optimize(keep_versions=NONE)
    assert outcomes(done) == [(COMPACT, None, StepOutcome.DONE), (VERSIONS, None, StepOutcome.DONE)]
    assert "3 became 1" in done.steps[0].what and done.versions > 0 and table.info().fragments == 1
    again = table.optimize(keep_versions=NONE)
    assert {did.outcome for did in again.steps} == {StepOutcome.NOTHING} and not again.failed


def test_what_is_worth_an_index_gets_it(table):
    table.append(many(0, SCALAR_MIN_ROWS))
    done = table.optimize()
    assert done.indexed == (*SCALAR_COLUMNS, "text") and table.maintenance.needs().missing == ()
    assert table.optimize().indexed == ()


def test_an_index_that_cannot_be_built_stops_nothing_else(table):
    for start in range(0, SCALAR_MIN_ROWS, SCALAR_MIN_ROWS // 10):
        table.append(many(start, start + SCALAR_MIN_ROWS // 10))
    no_index_can_be_built(table)
    with pytest.raises(NotOptimized, match="index on id: FAILED") as failed:
        table.optimize(keep_versions=NONE)
    done = failed.value.report
    assert [did.column for did in done.failed] == [*SCALAR_COLUMNS, "text"]
    assert done.versions >= 10 and done.kept == 0 and table.info().fragments == 1
    with memworker("table", "optimize", "--db", table.db, "--table", "t") as run:
        ended = run.wait()
    assert ended.code == 1 and "Traceback" not in ended.err
    first, *_, versions, last = ended.out.splitlines()
    assert first.startswith("fragments:") and versions.startswith("old versions:")
    assert "\nindex on text: FAILED: " in ended.out and last.startswith("5,000 rows: 1 fragments")
    with memworker("table", "optimize", "--db", table.db, "--table", "t", "--json") as run:
        steps = run.wait().report["steps"]
    assert [one["step"] for one in steps] == [COMPACT, *[INDEX] * 6, VERSIONS]
    assert {one["outcome"] for one in steps} == {"failed", "nothing to do"}


def test_a_damaged_index_is_dropped_and_built_anew(table, caplog):
    table.append(many(0, 600))
    index_scopes(table)
    for each in damaging.manifest(table.db).indices:
        if each.name == "user_id_idx":
            for path in (damaging.folder(table.db) / each.folder).iterdir():
                damaging.cut(path, 0.2)
    table.append(many(600, 900))
    with caplog.at_level(logging.WARNING):
        done = Table.open(table.db, "t").optimize()
    assert done.indexed == ("user_id",) and "user_id could not be read" in done.steps[0].what
    assert "index user_id_idx of table 't' cannot be read" in caplog.text
    assert table.count({"user_id": "u3"}) == 129 and table.info().fragments == 1


def test_older_versions_stay_while_a_file_of_this_one_is_damaged(tmp_path):
    table = damaging.make(tmp_path, 200, 200)
    first = damaging.data_files(tmp_path)[0]
    damaging.cut(first)
    with pytest.raises(NotOptimized) as failed:
        Table.open(tmp_path, "t").optimize(keep_versions=NONE)
    assert outcomes(failed.value.report) == [
        (COMPACT, None, StepOutcome.FAILED),
        (VERSIONS, None, StepOutcome.FAILED),
    ]
    assert "an older one may be whole" in str(failed.value)
    assert len(list((damaging.folder(tmp_path) / "_versions").glob("*.manifest"))) == table.version


def test_few_vectors_get_as_many_partitions_as_can_be(tmp_path):
    space = replace(SPACE, dim=4)
    table = Table.create(tmp_path, "t", space)
    distinct = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    rows = 3_000
    ids = pa.array([f"id-{n}" for n in range(rows)])
    table.append(records(ids, ids, distinct[np.arange(rows) % 20]))
    index.build(table._writes, 300)
    assert table.info().indices[0].columns == ("vector",)
    assert table.search(distinct[3], limit=1)[0].score == pytest.approx(1.0)


def test_an_older_version_is_kept_for_as_long_whoever_cleans_up():
    defaults = [inspect.signature(each).parameters for each in (Table.optimize, optimize_command)]
    assert defaults[0]["keep_versions"].default == policy.KEEP_VERSIONS
    assert timedelta(minutes=defaults[1]["keep_minutes"].default) == policy.KEEP_VERSIONS


# ── in the background ──


def test_upkeep_that_fails_lets_the_rest_pass(table, monkeypatch):
    table.append(many(0, SCALAR_MIN_ROWS))
    no_index_can_be_built(table)
    single_rows(table, SCALAR_MIN_ROWS, SCALAR_MIN_ROWS + FRAGMENTS_MAX)
    failed, done = [], []
    while table.maintenance.needs().step is not None:
        try:
            done.append(table.maintenance.tend().step)
        except StoreError as error:
            assert "indexing" in str(error)
            failed.append(len(table.maintenance.needs().failing))
    # A step that rests keeps no other waiting: it is not always the last.
    assert failed == [1, 2, 3, 4, 5, 6]
    assert done == [Step.GATHER] and table.info().fragments < FRAGMENTS_MAX
    # After a while they are tried again.
    (table.db / "t.lance" / "_indices").unlink()
    assert table.maintenance.tend().step is None
    monkeypatch.setattr(policy.time, "monotonic", lambda now=policy.time.monotonic: now() + 61)
    assert (
        table.maintenance.tend().step is Step.INDEX
        and "id" not in table.maintenance.needs().missing
    )


def test_a_memory_is_tended_though_a_step_fails(tmp_path, caplog):
    with Memory(tmp_path / "db", table="t", model="echo", workers=1) as memory:
        core = memory._core
        rows = SCALAR_MIN_ROWS
        rng = np.random.default_rng(0)
        ids = pa.array([f"id-{n}" for n in range(rows)])
        vectors = rng.normal(size=(rows, core.table.space.dim)).astype(np.float32)
        core.table.append(records(ids, ids, vectors))
        no_index_can_be_built(core.table)
        for number in range(2 * FRAGMENTS_MAX):
            memory.add(f"fact {number}", user_id="alice")
        # Each failure, then the gathering, with a second's pause between any two.
        wait_for(lambda: core.table.info().fragments <= FRAGMENTS_MAX, 60)
    assert "upkeep of table 't' failed: indexing id" in caplog.text


def test_words_are_found_without_an_index(table, caplog):
    table.append(numbered(0, 20))
    no_index_can_be_built(table)
    for _ in range(3):
        assert table.search_text("17", limit=1)[0].id == "id-17"
    told = [record for record in caplog.records if "read row by row" in record.message]
    assert len(told) == 1
    with pytest.raises(StoreError):
        table.maintenance.ensure_index("text")
    assert len(texts_by_id(table)) == 20


def test_after_a_reembedding_each_index_is_built_by_itself(table, tmp_path):
    table.append(many(0, 600))
    state = tmp_path / "db" / ".memworker" / "t"
    staged = Staged.open(state, "t", VectorSpace("echo", "fp32", 1, SPACE.dim, "e" * 16))
    try:
        staged.note_indices(["created_at", "id", "text", "vector"])
        no_index_can_be_built(table)
        with pytest.raises(StoreError) as failed:
            build_indices(table.db, "t", staged)
        assert str(failed.value).count("failed") == 3
        (table.db / "t.lance" / "_indices").unlink()
        assert build_indices(table.db, "t", staged) == ["created_at"]
    finally:
        staged.close()
    assert {each.columns[0] for each in table.info().indices} == {"id", "text", "vector"}
    assert json.loads((staged.folder / "space.json").read_text())
