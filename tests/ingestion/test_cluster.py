"""The same job on the nodes of a Ray cluster: two of them, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from memworker import Table, ingest
from memworker.errors import UsageError
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


@pytest.fixture(scope="module")
def both(cluster, tmp_path_factory):
    """One input, by both runners."""
    home = tmp_path_factory.mktemp("both")
    write_rows(home / "in")
    how = {"table": "t", "model": EchoLoader(dim=8)}
    here = ingest(home / "in", db=home / "here", **how)
    there = ingest(home / "in", db=home / "there", runner="ray", address=cluster.address, **how)
    return home, how, here, there


def test_both_runners_make_the_same_table(both):
    home, _, here, there = both
    assert counts(here) == counts(there)
    assert there.rejected == 2 and there.conflicts == 1 and there.duplicates == 1
    assert rows_of(home / "here") == rows_of(home / "there")


def test_a_bad_row_keeps_its_path_and_line(both):
    home, _, _, _ = both
    assert refused(home / "here") == refused(home / "there")


def test_run_again_it_embeds_and_writes_nothing(both, cluster):
    home, how, _, _ = both
    again = ingest(home / "in", db=home / "there", runner="ray", address=cluster.address, **how)
    assert (again.embedded, again.written, again.workers) == (0, 0, 0)
    assert again.duplicates == again.read - again.rejected - again.conflicts


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


def test_without_ray_the_command_that_installs_it_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from memworker import ingest; from memworker.pool import EchoLoader\n"
        "ingest('a.jsonl', db='db', table='t', model=EchoLoader(), runner='ray')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "pip install 'memworker[ray]'" in run.stderr.splitlines()[-1]
