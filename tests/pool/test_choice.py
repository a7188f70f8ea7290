"""The precision "auto": measured once, the fastest that is near enough; a table keeps its own."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from memworker import Auto, EmbeddingPool, Memory, Table, ingest, tune
from memworker.cli.memory_options import making
from memworker.errors import TableMismatch, UsageError
from memworker.memory import pool_like
from memworker.models import bf16
from memworker.pool import choose, remembered, settled, tuning
from memworker.pool.choice import Measurements, digest_of
from tests.models.tiny import make_bert

TEXTS = [f"w{n} w{n + 1} w{n + 7}" for n in range(40)]
TIERS = {"fp32", "int8"} if bf16.obstacle() else {"fp32", "int8", "bf16"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and a memory of this machine in which it was measured once."""
    folder = tmp_path_factory.mktemp("auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "_file", lambda: folder / "machine.json")
        model = make_bert(folder / "model")
        yield model, choose(model, Auto(-1, TEXTS), None, EmbeddingPool)


@pytest.fixture
def empty(home, monkeypatch, tmp_path):
    """A memory of this machine that holds nothing yet."""
    monkeypatch.setattr(remembered, "_file", lambda: tmp_path / "machine.json")
    return home[0]


def nothing_is_measured(*_, **__):
    raise AssertionError("it was measured before")


def test_it_is_measured_once_and_the_fastest_is_taken(home):
    model, first = home
    sample = first.sample
    assert {one.precision for one in sample.measured} == TIERS
    assert first.precision == max(sample.measured, key=lambda one: one.tokens_per_s).precision
    assert (sample.texts, sample.digest) == (len(TEXTS), digest_of(TEXTS))
    assert choose(model, Auto(-1, TEXTS), None, nothing_is_measured) == first
    with pytest.raises(AssertionError, match="before"):
        choose(model, Auto(-1, TEXTS), 16, nothing_is_measured)


def test_near_enough_is_the_mean_and_what_is_not_is_told(home):
    model, first = home
    (int8,) = [one for one in first.sample.measured if one.precision == "int8"]
    assert int8.least_cosine < int8.mean_cosine < 0.9999999
    strict = choose(model, Auto(1, TEXTS), None, nothing_is_measured)
    assert strict.precision == "fp32"
    assert "int8 has" in strict.told() and "below 1" in strict.told()
    loose = choose(model, Auto(int8.mean_cosine, TEXTS), None, nothing_is_measured)
    assert not re.search(r"int8 has [^;]*below", loose.told())


def test_a_pool_says_what_was_chosen(home, caplog):
    model, first = home
    caplog.set_level(logging.INFO, "memworker.pool.choice")
    pool = EmbeddingPool(model, precision=Auto(-1, TEXTS))
    assert pool.identity.precision == first.precision == pool.choice.precision
    assert caplog.messages == [first.told()]


def test_what_is_damaged_or_of_another_time_is_measured_anew(home, empty):
    model, first = home
    samples = Measurements(EmbeddingPool(model).identity.fingerprint)
    older = replace(first.sample.measured[0], fingerprint="another")
    for odd in ("x", [1], [{"digest": 1}], {"a": 2}):
        remembered.keep(samples._name, odd)
        assert samples.of(TEXTS, {}) is None
    now = {one.precision: one.fingerprint for one in first.sample.measured}
    samples.keep(replace(first.sample, measured=(older, *first.sample.measured[1:])))
    assert samples.of(TEXTS, now) is None
    samples.keep(first.sample)
    assert samples.of(TEXTS, now) == first.sample
    # Of two who measure at once, what the first one kept counts for both.
    again = replace(first.sample, texts=7)
    assert samples.keep(again) == first.sample == samples.of(TEXTS, now)


def test_nobody_who_keeps_something_loses_what_another_kept(empty):
    def add(_):
        remembered.change("count", lambda before: (before or 0) + 1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(80)))
    assert remembered.recall("count") == 80


def test_a_table_keeps_its_precision(empty, tmp_path, monkeypatch):
    monkeypatch.setattr("memworker.pool.choice.measure", nothing_is_measured)
    rows = [{"text": text} for text in TEXTS]
    for held in ("fp32", "int8"):
        ingest(rows[:4], db=tmp_path / held, table="t", model=empty, precision=held)
        report = ingest(rows, db=tmp_path / held, table="t", model=empty, precision="auto")
        assert (report.precision, report.written) == (held, 36)
        with Memory(tmp_path / held, table="t", model=empty, precision=Auto(0.5)) as memory:
            assert memory._core.pool.identity.precision == held
        made = making(str(tmp_path / held), "t", str(empty), "auto", None, None)
        assert made["precision"] == held
    other = make_bert(tmp_path / "other", seed=8)
    with pytest.raises(TableMismatch):
        ingest(rows, db=tmp_path / "int8", table="t", model=other, precision="auto")
    with pytest.raises(UsageError, match="in int8, and here.*wordllama-256.*static.*reembed"):
        ingest(rows, db=tmp_path / "int8", table="t", model="wordllama-256", precision="auto")
    assert Table.open(tmp_path / "int8", "t").count() == 40


def test_a_table_that_cannot_be_embedded_for_here_says_what_to_do(empty, tmp_path, monkeypatch):
    if "bf16" not in TIERS:
        pytest.skip(f"for bf16 {bf16.obstacle()}")
    ingest([{"text": "w1"}], db=tmp_path, table="t", model=empty, precision="bf16")
    monkeypatch.setattr(bf16, "find_spec", lambda name: None)
    told = r"bf16.*not installed here.*memworker\[openvino\].*memworker table reembed"
    with pytest.raises(UsageError, match=told):
        pool_like(Table.open(tmp_path, "t"), empty)
    with pytest.raises(UsageError, match=told):
        ingest([{"text": "w2"}], db=tmp_path, table="t", model=empty, precision="auto")
    with Memory.open(tmp_path, table="t", model=empty) as memory:
        assert memory.get_all(filters={"user_id": "u"})["results"] == []


def test_where_there_is_one_precision_it_is_taken():
    precision, choice = settled("wordllama-256", "auto", None, nothing_is_measured)
    assert (precision, choice.sample) == ("fp32", None)
    assert "int8: a static model" in choice.told()
    assert settled("echo", "auto", None, nothing_is_measured) == ("fp32", None)


def test_what_is_no_precision_is_refused(home):
    for bad in (7, None, "best"):
        with pytest.raises(UsageError, match="auto"):
            EmbeddingPool(home[0], precision=bad)
    for bad in ("0.9", 1.5, True, float("nan")):
        with pytest.raises(UsageError, match="min_cosine"):
            Auto(bad)
    with pytest.raises(UsageError, match="list of texts"):
        Auto(texts="one text")
    with pytest.raises(UsageError, match="auto"):
        tune(["x"], model=home[0], precisions=["auto"])


def test_what_tune_finds_is_what_auto_goes_by(empty, monkeypatch):
    # Each is a pool of its own for each precision.
    monkeypatch.setattr(tuning, "BATCH_TOKENS", (128, 512))
    trials = tune(TEXTS, model=empty, seconds=0.1)
    assert {trial.precision for trial in trials} == TIERS
    best = {trial.precision: trial.tokens_per_s for trial in trials if trial.kept}
    chosen = choose(empty, Auto(-1), None, nothing_is_measured)
    assert {one.precision: one.tokens_per_s for one in chosen.sample.measured} == best
    assert chosen.precision == max(best, key=best.get)
    assert "tuned" in chosen.told()
    assert json.loads(remembered._file().read_text())
