"""`scripts/soak` for some seconds, and that what it is to find would be found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pytest

from bench import soak, soak_memory, soak_watch
from bench.server import serving
from bench.soak_server import Clients, Known
from bench.soak_window import Window
from memworker import Memory, Table
from tests.faults.harness import wait_for

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def test_a_short_soak_measures_everything(tmp_path):
    arguments = ["--minutes", "0.06", "--json", str(tmp_path / "soak.json")]
    arguments += ["--clients", "4", "--rows", "400", "--workers", "1"]
    arguments += ["--model", "echo", "--precision", "fp32"]
    result = soak.soak(soak._options(arguments))
    counts = result["counts"]
    assert not [counts[what] for what in soak.WRONG if what in counts], result["complaints"]
    assert min(counts["vectors"], counts["acknowledged adds"], counts["rows at the end"]) > 0
    seen = set(result["samples"][-1])
    for who in ("server", "server's worker 1", "memory", "memory's worker 1"):
        assert {f"{who} {what}" for what in ("private_mb", "threads", "descriptors")} <= seen
        assert result["samples"][-1][f"{who} private_mb"] > 1
    assert result["samples"][-1]["database disk_mb"] > 0
    figures = {row["figure"] for row in result["drifts"]}
    assert {"server: one text p95_ms", "memory: add p50_ms", "temporary files"} <= figures
    assert json.loads((tmp_path / "soak.json").read_text())["samples"] == result["samples"]
    soak.show(result)


def test_what_grows_from_the_second_third_to_the_last_is_told():
    growing = [{"a private_mb": 50.0 + 5 * n, "b threads": 7.0} for n in range(9)]
    bigger, same = soak_watch.drifts(growing, [60.0 * n for n in range(9)])
    assert (bigger["second"], bigger["last"], bigger["steady"]) == (70, 85, False)
    assert bigger["an_hour"] == 300
    assert (same["ratio"], same["steady"]) == (1, True)
    assert soak.verdict({"counts": {}, "drifts": [bigger, same]}).endswith("grown: a private_mb")
    assert soak.verdict({"counts": {"lost adds": 2}, "drifts": []}).endswith("2 lost adds")
    assert soak.verdict({"counts": {"add": 2}, "drifts": [same]}) == ""


def test_what_grew_at_the_beginning_is_no_drift():
    samples = [{"a private_mb": value} for value in (1, 40, 80, 90, 91, 90, 91, 91, 90)]
    (row,) = soak_watch.drifts(samples, range(9))
    assert row["steady"] is True


def test_few_samples_say_nothing():
    samples = [{"a private_mb": 1.0, "add p50_ms": 5.0}, {"a private_mb": 9.0}, {}]
    for row in soak_watch.drifts(samples, [0, 1, 2]):
        assert (row["steady"], row["ratio"]) == (None, None)
    assert soak_watch.drifts([], []) == []
    assert Window().take() == {"latency": {}, "counts": {}, "complaints": []}


def test_wrong_vectors_are_found_and_a_new_worker_takes_the_old_ones_name():
    known = Known.by("echo", "fp32", ["tea", "some milk"])
    other = Known("echo", known.texts, np.roll(known.vectors, 1, axis=0))
    with serving(["--model", "echo", "--workers", "1"]) as server:
        family = soak_watch.Family("server", server.process.pid)
        assert {"server private_mb", "server's worker 1 threads"} <= set(family.look())
        with Clients(server.url, other, clients=2, per_second=200) as clients:
            counts = _until(clients.window, "wrong vectors")
        assert counts["status 200"] >= counts["wrong vectors"] > 0
        (worker,) = server.process.children()
        worker.kill()
        wait_for(lambda: set(_living(server.process)) - {worker.pid})
        assert "server's worker 1 private_mb" in family.look()
        assert family.replaced == 1


def test_a_lost_memory_is_found(tmp_path):
    window = Window()
    with Memory(tmp_path, model="wordllama-256", workers=1) as memory:
        agent = soak_memory.Agent(memory, 0, 2, window)
        agent.fill()
        for user in agent.users:
            agent._do("add", user)
        for kind in soak_memory.DEEDS:
            agent._do(kind, agent.users[0])
            agent._do("add", agent.users[0])
        assert agent.check_all() == memory.count() > 0
        agent._go(agent.users[1])
        assert not window.take()["complaints"]
        victim = next(iter(agent.users[0].there))
        Table.open(tmp_path, "memories").delete({"id": victim})
        agent.check_all()
    assert window.take()["counts"]["lost adds"] == 1


def _until(window, what):
    counts = {}

    def met():
        for name, many in window.take()["counts"].items():
            counts[name] = counts.get(name, 0) + many
        return what in counts

    wait_for(met)
    return counts


def _living(process):
    return [one.pid for one in process.children() if one.status() != psutil.STATUS_ZOMBIE]
