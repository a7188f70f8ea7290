import json

import numpy as np
import pytest

from bench import common, conversations, quality


def test_spearman_sees_order_alone():
    a = np.arange(10.0)
    assert quality.spearman(a, a**3) == pytest.approx(1)
    assert quality.spearman(a, -a) == pytest.approx(-1)


def test_recall_and_ndcg():
    assert quality.recall([1, 2, 3], {2: 1.0, 9: 1.0}) == 0.5
    assert quality.ndcg([2, 1], {2: 1.0}) == 1
    assert quality.ndcg([1, 2], {2: 1.0}) == pytest.approx(1 / np.log2(3))
    # Of two of equal worth one was found, at the second place.
    best = 1 + 1 / np.log2(3)
    assert quality.ndcg([1, 2], {2: 1.0, 9: 1.0}) == pytest.approx(1 / np.log2(3) / best)


def test_an_unknown_task_and_no_data_are_usage_errors(monkeypatch):
    monkeypatch.delenv("MEMWORKER_DATA", raising=False)
    assert common.run(quality.main, ["--tasks", "nothing"]) == 2
    assert common.run(quality.main, []) == 2


@pytest.fixture
def data(tmp_path):
    """Write a data folder of our own in the layout of the real one."""
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "stsb-en-test.csv").write_text(
        "A cat sleeps.,A cat is asleep.,5.0\n"
        '"A man, singing.",A person sings a song.,3.5\n'
        "A dog barks.,The stock market fell.,0.0\n"
    )
    folder = tmp_path / "locomo"
    (folder / "qrels").mkdir(parents=True)
    turns = ["Ann: I adopted a puppy.", "Bob: The rent went up.", "Ann: We flew to Oslo."]
    rows = [{"_id": f"c/t{n}", "title": "", "text": turn} for n, turn in enumerate(turns)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "c/q", "text": "What pet has Ann?"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nc/q\tc/t0\t1\n")
    return tmp_path


def test_a_small_run(measure, data):
    result = measure(
        quality.main,
        *("--data", str(data), "--tasks", "stsb,locomo,conversations"),
        *("--precisions", "fp32,none", "--workers", "1"),
    )
    row, absent = result["rows"]
    assert row["tasks"]["stsb"]["value"] == pytest.approx(1)
    assert row["tasks"]["locomo"]["value"] == 1
    for mode in (*conversations.MODES, "hybrid, undated"):
        told = row["tasks"][f"conversations-{mode}"]
        assert told["by_conversation"] == {"c": 1}
        assert set(told["modes"]["all"]) == {"first hit", "recall@5", "recall@10", "nDCG@10"}
        assert told["modes"]["all"]["first hit"] == 1
    assert "skipped" in absent


@pytest.mark.data
@pytest.mark.long
def test_fp32_has_the_published_spearman(measure, data_dir):
    result = measure(
        quality.main, "--data", str(data_dir), "--tasks", "stsb", "--precisions", "fp32"
    )
    assert result["rows"][0]["tasks"]["stsb"]["value"] == pytest.approx(0.820, abs=0.001)
