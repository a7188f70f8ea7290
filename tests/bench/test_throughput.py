import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from bench import common, peers, throughput
from bench.coordination import deal, pack
from bench.peers import PEERS


def test_padding_is_counted_as_the_peer_pads():
    texts = ["aaaa", "b", "cc", "ddd"]
    counts = np.array([4, 1, 2, 3])
    assert PEERS["fastembed-one"].padded_tokens(texts, counts) == 10
    assert PEERS["fastembed-parallel"].padded_tokens(texts, counts) == 16
    many, counts = [*["a"] * 8, *["bb"] * 8], np.array([1] * 8 + [2] * 8)
    assert PEERS["fastembed-sorted"].padded_tokens(many, counts) == 24


def test_packed_batches_hold_every_text_once_within_the_budget():
    counts = np.random.default_rng(1).integers(3, 256, 500)
    batches = pack(counts, 512)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(counts[batch].max() * len(batch) <= 512 for batch in batches)
    assert counts.sum() / sum(counts[b].max() * len(b) for b in batches) > 0.98


def test_shares_are_even():
    counts = np.random.default_rng(2).integers(3, 256, 500)
    shares = deal(counts, 256, 3)
    assert sorted(np.concatenate([b for s in shares for b in s]).tolist()) == list(range(500))
    tokens = [sum(int(counts[batch].sum()) for batch in share) for share in shares]
    assert max(tokens) - min(tokens) < 512


def test_a_sample_is_evenly_spaced():
    assert throughput._sample(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert throughput._sample(3, None).tolist() == [0, 1, 2]
    assert throughput._sample(3, 9).tolist() == [0, 1, 2]


def test_an_unknown_peer_is_named(capsys):
    assert common.run(throughput.main, ["--peers", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--workers", "--repeats"])
def test_zero_is_refused(option):
    with pytest.raises(SystemExit) as stopped:
        throughput.main([option, "0"])
    assert stopped.value.code == 2


def test_a_small_race(measure):
    result = measure(
        throughput.main,
        *("--limit", "64", "--repeats", "1", "--workers", "2"),
        *("--precisions", "fp32,none", "--peers", "fastembed-one,shared-session"),
    )
    rows = {row["name"]: row for row in result["rows"]}
    assert "skipped" in rows["memworker-none"]
    for name in ("memworker-fp32", "fastembed-one", "shared-session"):
        assert rows[name]["min_cosine"] > 0.9999
        assert rows[name]["texts_per_second"] > 0
    assert rows["fastembed-one"]["padding_ratio"] == 0
    assert result["ratios"]["memworker-fp32"]["best_peer"] in rows
    assert result["coordination"]["memworker-fp32"]["ratio"] > 0


def test_a_small_race_of_static_models(measure):
    result = measure(
        throughput.main,
        *("--static", "--limit", "64", "--repeats", "1", "--workers", "2"),
        *("--peers", "wordllama,model2vec"),
    )
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["memworker-fp32"]["texts_per_second"] > 0
    for row in result["rows"]:
        assert row.get("skipped") or row["min_cosine"] > 0.999


def test_what_is_missing_is_named(measure, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        peers, "find_spec", lambda name: None if name == "openvino" else there(name)
    )
    peer = replace(PEERS["openvino-expert-bf16"], needs=("numpy", "openvino", "no.such.package"))
    assert peer.missing() == "openvino"
    assert replace(peer, needs=("numpy", "no.such.package")).missing() == "no.such.package"
