"""Each bench once, on a few texts; figures are not judged."""

import re
from pathlib import Path

import numpy as np
import pytest

from bench import ceiling, common, ladder, latency, memory_of_a_worker, report, scaling


def test_ceiling(measure):
    result = measure(ceiling.main, "--limit", "64", "--repeats", "1", "--workers", "1")
    assert [row["name"] for row in result["rows"]] == [
        "to vectors",
        "to LanceDB",
        "to LanceDB, durable",
    ]
    assert all(row["texts_per_second"] > 0 for row in result["rows"])


def test_ceiling_needs_a_model_to_count_tokens(capsys):
    assert common.run(ceiling.main, ["--most-tokens", "20"]) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.long
def test_ladder(measure):
    result = measure(ladder.main, "--limit", "20", "--repeats", "1", "--workers", "1")
    rows = [row for row in result["rows"] if "skipped" not in row]
    assert rows[0]["over_first"] == 1
    assert len(rows) >= 5


def test_the_queue_takes_everybody_and_stops(tmp_path):
    from bench.reference import export_reference
    from memworker.models import ready_model

    export_reference(ready_model(ladder.MODEL), tmp_path)
    with ladder.micro_batched_queue(ladder.Setting(tmp_path, 3, 1)) as embed:
        step = ladder.Step("queue", embed, callers=3)
        assert step.turn(["a", "b", "c", "d"]) > 0


@pytest.mark.long
def test_latency(measure):
    options = ("--limit", "40", "--repeats", "1", "--workers", "1", "--precision", "int8")
    (row,) = measure(latency.main, *options, "--callers", "4", "--seconds", "0.2")["rows"]
    assert row["precision"] == "int8"
    # A difference may be anything: on a busy machine the one turn was luckier than the other.
    taken = {name: value for name, value in row.items() if "_added_" not in name}
    assert all(value > 0 for name, value in taken.items() if name.endswith(("_ms", "_second")))
    assert row["query_p95_in_micro_batches"] > 0
    # What the ingest kept of its speed can be told where something of it ended in that time.
    shares = [value for name, value in row.items() if name.startswith("bulk_share")]
    assert len(shares) == 2 and all(share is None or share >= 0 for share in shares)


def test_what_was_not_measured_is_said_so(capsys):
    row = {"precision": "fp32", "query_p95_ms": 3.0, "bulk_share_with_paced_questions": None}
    latency.show({"texts": 1, "callers": 1, "workers": 1, "repeats": 1, "rows": [row]})
    said = capsys.readouterr().out
    assert "not measured" in said and "--seconds" in said


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_of_a_worker(measure):
    result = measure(
        memory_of_a_worker.main, "--limit", "8", "--repeats", "1", "--precisions", "fp32,none"
    )
    _, model, absent = result["rows"]
    assert 0 < model["session_anon_mb"] < model["anon_mb"]
    assert "skipped" in absent


def test_costs_are_found_again():
    observed = [(n, n / size, 2e-6 * n + 90e-6 * n / size) for n, size in [(100, 1), (9000, 900)]]
    found = scaling.fit_costs(np.array(observed))
    assert found["text"] == pytest.approx(2e-6)
    assert found["shard"] == pytest.approx(90e-6)


def test_the_curve_ends_where_the_parent_is_full():
    worker_s = {1: 0.010, 2: 0.0101}
    assert scaling.predict(1, worker_s, 1e-5) == pytest.approx(1 / 0.01001)
    assert scaling.predict(64, worker_s, 1e-3) == 1000


def test_scaling_and_the_report(measure, tmp_path, capsys):
    measure(
        scaling.main,
        *("--limit", "64", "--echo-limit", "500", "--repeats", "1", "--precisions", "fp32"),
    )
    out = tmp_path / "page.html"
    assert common.run(report.main, ["--out", str(out), "--save", str(tmp_path / "results")]) == 0
    page = out.read_text()
    assert "<svg" in page and "all-MiniLM-L6-v2 fp32" in page
    # Nothing is loaded: what stands there are the names of SVG's own words.
    assert "http" not in re.sub(r"http://www\.w3\.org/(2000/svg|1999/xlink)", "", page)


def test_a_report_of_nothing_says_what_to_run(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "page.html"), "--save", str(tmp_path)]
    assert common.run(report.main, arguments) == 2
    assert "python -m bench throughput" in capsys.readouterr().err
    # Saved by benches that the page has no section for.
    for name in ("latency", "server", "soak"):
        (tmp_path / f"{name}.json").write_text(f'{{"bench": "{name}"}}')
    assert common.run(report.main, arguments) == 2
    assert "python -m bench throughput" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert common.run(report.main, arguments) == 2
    assert "no result of a bench" in capsys.readouterr().err
