"""What an id means: one row of a table, whoever's it is; and the true reason where it is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memworker import EmbeddingPool, Table, ingest


@pytest.fixture(scope="module")
def echo():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


@pytest.fixture
def run(echo, tmp_path):
    def run(*rows, **options):
        return ingest(rows, db=tmp_path / "db", table="t", pool=echo, **options)

    return run


def stored(tmp_path):
    rows = Table.open(tmp_path / "db", "t").rows().to_pylist()
    return {row["id"]: (row["text"], row["user_id"], row["metadata"]) for row in rows}


def reasons(report):
    if report.rejects is None:
        return []
    return [json.loads(line)["reason"] for line in Path(report.rejects).read_text().splitlines()]


OF_USERS = {"scope": {"user_id": "u"}}


@pytest.mark.parametrize("policy", ["reject", "update", "skip"])
@pytest.mark.parametrize("text", ["one", "other"])
@pytest.mark.parametrize("at_once", [True, False])
def test_no_policy_moves_a_row_to_another_user(run, tmp_path, policy, text, at_once):
    first, second = {"id": "a", "text": "one", "u": "ann"}, {"id": "a", "text": text, "u": "bob"}
    if at_once:
        report = run(first, second, on_conflict=policy, **OF_USERS)
    else:
        run(first, **OF_USERS)
        report = run(second, on_conflict=policy, **OF_USERS)
    assert stored(tmp_path) == {"a": ("one", "ann", None)}
    assert (report.conflicts, report.updated, report.duplicates) == (1, 0, 0)
    if policy != "skip":
        (reason,) = reasons(report)
        assert "id 'a' is already there of user_id 'ann', not 'bob'" in reason


def test_another_text_of_the_same_user_is_an_update(run, tmp_path):
    run({"id": "a", "text": "one", "u": "ann"}, **OF_USERS)
    other = {"id": "a", "text": "two", "u": "ann"}
    assert reasons(run(other, **OF_USERS)) == ["id 'a' is already there with another text"]
    assert run(other, on_conflict="update", **OF_USERS).updated == 1
    assert stored(tmp_path) == {"a": ("two", "ann", None)}


@pytest.mark.parametrize("at_once", [True, False])
def test_other_metadata_are_a_conflict_that_names_the_fields(run, tmp_path, at_once):
    first = {"id": "a", "text": "one", "n": 1, "k": True}
    other = {"id": "a", "text": "one", "n": 2, "k": True}
    report = run(first, other) if at_once else (run(first), run(other))[1]
    told = "id 'a' is already there with the same text and other metadata ('n')"
    assert (report.conflicts, reasons(report)) == (1, [told])
    assert run(first, dict(reversed(first.items()))).duplicates == 2
    assert run(other, on_conflict="skip").conflicts == 1
    updated = run(other, on_conflict="update")
    assert (updated.updated, updated.rejects) == (1, None)
    assert stored(tmp_path) == {"a": ("one", "", '{"k":true,"n":2}')}
    assert run(other).duplicates == 1


@pytest.mark.parametrize("name", ["_id", "uuid", "ID", "doc_id"])
def test_rows_without_an_id_tell_which_field_may_be_it(run, tmp_path, name):
    rows = [{name: str(i), "text": "same"} for i in range(3)]
    report = run(*rows)
    assert (report.written, report.duplicates, report.conflicts) == (1, 0, 2)
    assert all("it has no id, so its text made one" in reason for reason in reasons(report))
    assert all(f"--id-field {name}" in reason for reason in reasons(report))
    assert any(f"--id-field {name}" in note for note in report.notes)
    named = run(*rows, id_field=name)
    assert (named.written, named.rejects, named.notes) == (3, None, ())


def test_equal_rows_without_an_id_are_duplicates_without_a_word(run):
    report = run({"text": "x", "n": 1}, {"text": "x", "n": 1}, {"text": "x", "n": 1.0})
    assert (report.written, report.duplicates, report.conflicts) == (1, 1, 1)
    assert report.notes == ()


def test_known_rows_with_metadata_stay_duplicates_however_numbers_are_written(run):
    rows = [
        {"id": str(i), "text": "x", "n": 10.0**i, "z": [i, {"b": 1, "a": None}]} for i in range(30)
    ]
    assert run(*rows).written == 30
    assert run(*rows).duplicates == 30
