"""The same job on the nodes of a Ray cluster: two of them, on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memworker import Table, ingest, verify_table
from memworker.errors import UsageError
from memworker.ingestion.cluster.nodes import end_left_by
from memworker.ingestion.cluster.runner import OnRay
from memworker.pool import EchoLoader, EmbeddingPool

ray = pytest.importorskip("ray", reason="needs memworker[ray]")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two CPUs each; those who ask for Ray get these."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = {"num_cpus": 2, "object_store_memory": 150 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=nodes)
        made.add_node(num_cpus=2, object_store_memory=150 << 20)
        yield made
        if ray.is_initialized():
            ray.shutdown()
        made.shutdown()


def write_rows(folder):
    """Write rows of several formats, with bad, doubled and contested ones."""
    folder.mkdir()
    lines = [json.dumps({"id": f"j{i}", "text": f"line {i}", "n": i}) for i in range(9000)]
    lines[4321] = "no JSON"
    lines[7000] = json.dumps({"id": "j17", "text": "another text of an id"})
    lines[8000] = lines[3]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    cells = [f'c{i},"cell, {i}\nin two lines"' for i in range(500)]
    (folder / "b.csv").write_text("\n".join(["id,text", *cells, "c1,x,y"]) + "\n")
    for i in range(20):
        (folder / f"small{i:02}.jsonl").write_text(json.dumps({"text": f"small {i}"}) + "\n")


def rows_of(db):
    rows = Table.open(db, "t").rows(columns=["id", "text", "vector", "metadata"])
    return sorted(rows.to_pylist(), key=lambda row: row["id"])


def refused(db):
    lines = (db / ".memworker" / "t" / "rejects.jsonl").read_text().splitlines()
    return sorted(lines)


def counts(report):
    names = ("read", "written", "duplicates", "conflicts", "updated", "rejected")
    return {name: getattr(report, name) for name in names}


@pytest.fixture(scope="module", params=["driver", "fragments"])
def both(cluster, tmp_path_factory, request):
    """One input, by both runners; small parts, so that its large file is in many."""
    home = tmp_path_factory.mktemp("both")
    write_rows(home / "in")
    how = {"table": "t", "model": EchoLoader(dim=8)}
    here = ingest(home / "in", db=home / "here", **how)
    runner = OnRay(cluster.address, commit=request.param, part_bytes=100_000)
    there = ingest(home / "in", db=home / "there", runner=runner, **how)
    return home, how, runner, here, there


def test_both_runners_make_the_same_table(both):
    home, _, _, here, there = both
    assert counts(here) == counts(there)
    assert there.rejected == 2 and there.conflicts == 1 and there.duplicates == 1
    assert rows_of(home / "here") == rows_of(home / "there")
    assert verify_table(home / "there", "t").damages == ()


def test_a_bad_row_keeps_its_path_and_line(both):
    home, *_ = both
    assert refused(home / "here") == refused(home / "there")


def test_run_again_it_embeds_and_writes_nothing(both):
    home, how, runner, _, _ = both
    again = ingest(home / "in", db=home / "there", runner=runner, **how)
    assert (again.embedded, again.written, again.workers) == (0, 0, 0)
    assert again.duplicates == again.read - again.rejected - again.conflicts


@pytest.mark.long
def test_of_several_texts_of_an_id_the_last_stands_with_update(cluster, tmp_path):
    how = {"table": "t", "model": EchoLoader(dim=8), "on_conflict": "update"}
    texts = ["first", "second", "first", "third", "second"]
    lines = [{"id": str(i), "text": f"{texts[0]} {i}"} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = [{"id": str(i), "text": f"{text} {i}"} for text in texts[1:] for i in range(0, 300, 7)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in more))
    for db, runner in (("here", "local"), ("there", OnRay(cluster.address, part_bytes=900))):
        for name in ("a.jsonl", "b.jsonl"):
            ingest(tmp_path / name, db=tmp_path / db, runner=runner, **how)
    assert rows_of(tmp_path / "here") == rows_of(tmp_path / "there")


def test_a_dataset_of_rays_goes_in(cluster, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        rows = [{"id": str(i), "text": f"row {i}" if i != 50 else " "} for i in range(100)]
        given = ray.data.from_items(rows)
        report = ingest(given, db=tmp_path / "db", table="t", model=EchoLoader(), runner="ray")
        assert (report.read, report.written, report.rejected) == (100, 99, 1)
        # The caller's own Ray is left as it was.
        assert ray.is_initialized()
        assert ray.data.from_items([1]).count() == 1
    finally:
        ray.shutdown()
    (told,) = refused(tmp_path / "db")
    assert json.loads(told)["path"] == "<records>"


def test_what_nodes_cannot_read_is_refused_before_anything_is_done(tmp_path):
    how = {"db": tmp_path / "db", "table": "t", "model": EchoLoader()}
    with pytest.raises(UsageError, match="standard input is read by one process"):
        ingest("-", runner="ray", **how)
    with pytest.raises(UsageError, match="ray.data.from_items"):
        ingest([{"text": "a"}], runner="ray", **how)
    with pytest.raises(UsageError, match="give --runner ray as well"):
        ingest([{"text": "a"}], address="auto", **how)
    with pytest.raises(UsageError, match="--chunk"):
        ingest("x.jsonl", runner="ray", chunk=200, **how)
    with EmbeddingPool(model=EchoLoader()) as pool, pytest.raises(UsageError, match="pool="):
        ingest("x.jsonl", db=tmp_path / "db", table="t", pool=pool, runner="ray")
    assert not (tmp_path / "db").exists()


def test_what_the_runner_cannot_obey_is_refused(tmp_path):
    for wrong in ({"commit": "both"}, {"encoders": "gpu"}, {"part_bytes": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            OnRay(**wrong)
    how = {"table": "t", "model": EchoLoader(dim=8), "runner": OnRay(commit="fragments")}
    with pytest.raises(UsageError, match="takes a merge.*commit='driver'"):
        ingest(["a"], db=tmp_path, on_conflict="update", **how)
    with pytest.raises(UsageError, match="into a bucket.*commit='driver'"):
        ingest(["a"], db="s3://nowhere/db", **how)


def test_without_ray_the_command_that_installs_it_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from memworker import ingest; from memworker.pool import EchoLoader\n"
        "ingest('a.jsonl', db='db', table='t', model=EchoLoader(), runner='ray')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "pip install 'memworker[ray]'" in run.stderr.splitlines()[-1]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_what_a_killed_driver_left_running_ends_and_nothing_else_does(tmp_path):
    logs = tmp_path / "0123456789abcdef"
    logs.mkdir()
    wait = "print(flush=True); input()"
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", wait, "/tmp/elsewhere"], **how)
    named = subprocess.Popen([sys.executable, "-c", wait, f"--temp={logs}/session"], **how)
    with (logs / "agent.log").open("w") as log:
        writes = subprocess.Popen([sys.executable, "-c", wait], stderr=log, **how)
    for process in (other, named, writes):
        process.stdout.readline()
    end_left_by(logs)
    assert named.wait(10) == writes.wait(10) == -signal.SIGKILL
    other.communicate(b"\n", timeout=10)
    assert other.returncode == 0
    for process in (named, writes):
        process.communicate()
