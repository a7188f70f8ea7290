import json
import subprocess
import sys

import pytest

from bench import common
from bench.__main__ import BENCHES
from bench.texts import data_dir, many_texts, read_texts
from memworker.errors import InputNotFound, MissingField, NoRows, UsageError


def test_the_shipped_sample_is_the_default():
    assert len(read_texts(limit=5)) == 5


def test_many_texts_are_all_different():
    texts = many_texts(9000)
    assert len(set(texts)) > 8900
    assert texts[:4000] == read_texts(limit=4000)


@pytest.mark.parametrize(
    ("line", "error"), [('{"body": "x"}\n', MissingField), ("", NoRows), (None, InputNotFound)]
)
def test_bad_texts_are_refused(tmp_path, line, error):
    path = tmp_path / "texts.jsonl"
    if line is not None:
        path.write_text(line)
    with pytest.raises(error):
        read_texts(path)


def test_the_reference_data_has_to_be_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MEMWORKER_DATA", raising=False)
    with pytest.raises(UsageError, match="--data DIR"):
        data_dir(None)
    with pytest.raises(InputNotFound):
        data_dir(tmp_path / "none")


def test_exit_codes():
    def refuse(arguments):
        raise UsageError("no")

    def fail(arguments):
        raise NoRows("none")

    assert common.run(refuse) == 2
    assert common.run(fail) == 1
    assert common.run(lambda arguments: None) == 0


def test_what_was_not_measured_is_none_and_said():
    assert common.ratio(6.0, 3.0) == 2.0
    assert common.ratio(6.0, 0.0) is common.ratio(6.0, None) is common.ratio(None, 3.0) is None
    assert (common.figure(None), common.figure(1234.5)) == ("not measured", "1,234.50")


def test_spread_and_medians():
    assert common.spread([2.0, 3.0]) == pytest.approx(0.5)
    assert common.medians([{"a": 1.0}, {"a": 3.0}, {"a": 9.0}]) == {"a": 3.0}


def test_facts_name_the_machine_and_the_libraries():
    facts = common.machine_facts()
    assert facts["cores"] >= 1
    assert {"memworker", "onnxruntime", "fastembed", "lancedb"} <= set(facts["versions"])
    json.dumps(facts)


def test_an_unknown_bench_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert all(name in done.stderr for name in BENCHES)
