from importlib.util import find_spec

import numpy as np
import pytest

from bench import common, memory, report
from bench.stores import StoreLoad, fill

SMALL = [
    *("--callers", "1,3", "--batches", "20", "--adds", "6", "--queries", "3"),
    *("--per-user", "50", "--workers", "1"),
]


def load(stored, per_user=50):
    return StoreLoad("m", "fp32", None, "", "", 1, stored, per_user, ["a", "b", "c"])


def test_the_fill_is_near_real_texts_and_everybodys():
    base = np.eye(3, 8, dtype=np.float32)
    (chunk,) = fill(load(500), base)
    assert len(set(chunk.texts)) == 500
    assert np.linalg.norm(chunk.vectors, axis=1) == pytest.approx(1, abs=1e-5)
    nearest = (chunk.vectors @ base.T).argmax(axis=1)
    agree = [text[0] == "abc"[row] for text, row in zip(chunk.texts, nearest, strict=True)]
    assert np.mean(agree) > 0.95
    assert {user: chunk.users.count(user) for user in load(500).users} == {
        f"user-{number}": 50 for number in range(10)
    }
    assert load(0).users == []


def test_a_search_is_split_into_its_embedding_and_the_rest():
    turns = [{"per_second": 10.0, "latencies_ms": [5.0, 7.0, 9.0], "embed_ms": [1.0, 2.0, 3.0]}]
    found = memory.figures(turns)
    assert (found["p50_ms"], found["embed_p50_ms"], found["rest_p50_ms"]) == (7, 2, 5)
    assert found["calls"] == 3


def test_targets_are_reached_or_not():
    row = {"name": "int8", "what": "memworker int8", "stored": 200_000}
    rows = [
        {**row, "kind": "add_batch", "operation": "add_batch of 100", "over_mem0": 2.2},
        {**row, "kind": "add", "operation": "add, 64 callers", "over_mem0": None},
        {
            **row,
            **{"kind": "search", "operation": "search, vector"},
            **{"rest_p50_ms": 12.0, "recall_at_10": 0.99},
        },
    ]
    found = list(memory._targets(rows))
    assert [target["met"] for target in found] == [False, None, True, True]
    assert memory.said(found[0]).startswith("NOT reached: memworker int8")


def test_every_operation_of_a_round_has_its_own_user_and_like_texts():
    options = memory._options(SMALL)
    plan = memory.Plan(memory.operations(options), [f"t{n} " * 20 for n in range(99)])
    first, second = (list(plan.requests(number, [])) for number in (0, 1))
    assert first[0][1]["user"] != second[0][1]["user"]
    assert first[0][1]["texts"] == second[0][1]["texts"]
    users = [request["user"] for operation, request in first if not operation.asks]
    assert len(set(users)) == len(users)
    assert [operation.kind for operation, _ in first].count("recall") == 1
    assert "recall" not in [operation.kind for operation, _ in second]


def test_few_texts_are_as_long_as_many():
    texts = ["x" * 2 ** (n % 10) for n in range(1000)]
    lengths = [sum(map(len, memory.alike(texts, count))) / count for count in (20, 100, 1000)]
    assert lengths == pytest.approx([102.3] * 3)
    assert len(memory.alike(["a", "b"], 5)) == 5


def test_an_unknown_precision_is_named(capsys):
    assert common.run(memory.main, ["--precision", "fp8"]) == 2
    assert "fp8" in capsys.readouterr().err


def test_a_small_run_and_its_report(measure, tmp_path):
    result = measure(
        memory.main,
        *(*SMALL, "--stored", "0,300", "--precision", "static", "--rounds", "2", "--no-mem0"),
    )
    names = {"add, 1 caller", "add, 3 callers", "add_batch of 20"}
    names |= {f"search, {mode}" for mode in memory.MODES}
    for stored in (0, 300):
        rows = {row["operation"]: row for row in result["rows"] if row["stored"] == stored}
        assert rows.keys() == names
        assert all(row["per_second"] > 0 for row in rows.values())
        assert all(row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows.values())
        assert rows["search, vector"]["recall_at_10"] > 0.9
        assert rows["search, text"]["first_ms"] > 0
        assert rows["search, text"]["embed_p50_ms"] == 0
    assert result["targets"]
    out = tmp_path / "page.html"
    assert common.run(report.main, ["--out", str(out), "--save", str(tmp_path / "results")]) == 0
    assert "300 stored memories" in out.read_text()


@pytest.mark.skipif(find_spec("mem0") is None, reason="needs mem0ai")
@pytest.mark.long
def test_mem0_takes_part_where_it_is_installed(measure):
    result = measure(
        memory.main,
        *(*SMALL, "--stored", "60", "--precision", "fp32", "--rounds", "1"),
    )
    rows = {(row["name"], row.get("operation")): row for row in result["rows"]}
    assert ("mem0", "search, vector") in rows and ("mem0", "search, hybrid") not in rows
    assert rows["mem0", "add, 1 caller"]["over_mem0"] == 1
    assert rows["fp32", "add_batch of 20"]["over_mem0"] > 0
