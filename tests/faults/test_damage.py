"""Faults 28 and 58: any file of a table, damaged anywhere; verified, repaired, ingested again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from memworker import EmbeddingPool, ingest
from memworker.store import Table, indices
from memworker.store.manifest import manifest_path, read_manifest
from memworker.store.repair import repair_table
from memworker.store.verify import verify_table
from tests.faults.harness import memworker
from tests.store.damaging import cut, flip, flip_padding, zero

ROWS = 900


def vector_of(text: str, dim: int) -> np.ndarray:
    """The echo model's vector."""
    raw = text.encode()
    vector = np.zeros(dim, np.float32)
    vector[:3] = (1, len(raw), sum(raw) % 65_521)
    return vector


@pytest.fixture(scope="module")
def pool():
    with EmbeddingPool("echo", workers=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def grown(tmp_path_factory, pool):
    """A database with a table that has seen commits, updates, deletions and indices; its input."""
    folder = tmp_path_factory.mktemp("grown")
    path, db = folder / "in.jsonl", folder / "db"
    lines = [
        json.dumps(
            {"id": f"id-{n}", "text": f"text {n} {'x' * (n % 70)}", "user": f"u{n % 3}", "n": n}
        )
        for n in range(ROWS)
    ]
    for start in range(0, ROWS, 300):
        path.write_text("\n".join(lines[start : start + 300]))
        run(path, db, pool)
    path.write_text("\n".join(lines))
    table = Table.open(db, "t")
    # One of each kind: what a look at an index costs is questions, and the others are like it.
    with table.maintenance.hold():
        indices.build_scalar(table._writes, "id")
    table.maintenance.ensure_index("text")
    table.delete({"id": {"in": ["id-5", "id-450", "id-451"]}})
    run(path, db, pool)
    return path, db, {json.loads(line)["id"]: json.loads(line)["text"] for line in lines}


@pytest.fixture(scope="module")
def noted(tmp_path_factory, grown):
    """The same, verified: checksums of all that is sound are noted."""
    path, db, oracle = grown
    copy = tmp_path_factory.mktemp("noted") / "db"
    shutil.copytree(db, copy)
    assert verify_table(copy, "t").healthy
    return path, copy, oracle


def run(path, db, pool):
    return ingest([path], db=db, table="t", pool=pool, scope={"user_id": "user"})


def must_be_all(db, oracle):
    rows = Table.open(db, "t").rows(columns=["id", "text", "vector", "metadata", "user_id"])
    assert rows.num_rows == len(oracle)
    assert dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True)) == oracle
    for row in rows.to_pylist():
        number = int(row["id"].removeprefix("id-"))
        expected = vector_of(row["text"], len(row["vector"]))
        assert np.array_equal(np.float32(row["vector"]), expected), row["id"]
        assert json.loads(row["metadata"]) == {"n": number} and row["user_id"] == f"u{number % 3}"


def files_of(db) -> dict[str, list[Path]]:
    folder, version = db / "t.lance", Table.open(db, "t").version
    manifest = read_manifest(folder, version)
    return {
        "data": [folder / f.path for each in manifest.fragments for f in each.files],
        "deletions": [folder / each.deletions for each in manifest.fragments if each.deletions],
        "index": [p for each in manifest.indices for p in (folder / each.folder).iterdir()],
        "version": [manifest_path(folder, version)],
    }


def harm(path: Path, how: str, random: np.random.Generator) -> None:
    times, size = path.stat(), path.stat().st_size
    at = int(random.integers(size))
    if how == "zeroed":
        zero(path, at)
    elif how == "flipped":
        flip(path, at, int(random.integers(8)))
    elif how == "cut":
        cut(path, random.random())
    else:
        path.unlink()
        return
    # A disk that forgets does not tell the time.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def must_heal(db, path, oracle, pool, told):
    done = repair_table(db, "t")
    assert done.healthy, (told, done.after.damages)
    again = run(path, db, pool)
    assert again.conflicts == again.rejected == 0, told
    must_be_all(db, oracle)
    assert verify_table(db, "t").healthy, told
    return done, again


@pytest.mark.parametrize("kind", ["data", "deletions", "index", "version"])
@pytest.mark.parametrize("how", ["zeroed", "flipped", "cut", "missing"])
def test_58_damage_after_a_verification_is_seen_and_healed(tmp_path, noted, pool, kind, how):
    path, db, oracle = noted
    seeds = int(os.environ.get("MEMWORKER_DAMAGES", 1))
    for seed in range(seeds):
        here = tmp_path / f"db{seed}"
        shutil.copytree(db, here)
        random = np.random.default_rng([seed, sum(map(ord, kind + how))])
        chosen = random.choice([str(one) for one in files_of(here)[kind]])
        harm(Path(chosen), how, random)
        told = (seed, kind, how, chosen)
        found = verify_table(here, "t")
        assert not found.healthy, told
        done, again = must_heal(here, path, oracle, pool, told)
        assert again.written <= done.removed + 3, told
        shutil.rmtree(here)


@pytest.mark.parametrize("how", ["zeroed", "cut", "missing"])
def test_58_damage_that_nothing_was_noted_of(tmp_path, grown, pool, how):
    path, db, oracle = grown
    here = tmp_path / "db"
    shutil.copytree(db, here)
    random = np.random.default_rng(len(how))
    for kind in ("data", "deletions"):
        harm(files_of(here)[kind][0], how, random)
    assert not verify_table(here, "t").healthy
    must_heal(here, path, oracle, pool, how)


def test_58_a_block_of_the_newest_file_is_zeroed_and_ingest_alone_does_not_heal(
    tmp_path, grown, pool
):
    path, db, oracle = grown
    here = tmp_path / "db"
    shutil.copytree(db, here)
    newest = files_of(here)["data"][0]
    # In the middle are vectors.
    zero(newest, newest.stat().st_size // 2)
    assert run(path, here, pool).written == 0
    done = repair_table(here, "t")
    assert 0 < done.removed == len(done.ids) < 50 and done.rewritten == 0
    assert set(done.ids) <= oracle.keys()
    assert run(path, here, pool).written == done.removed
    must_be_all(here, oracle)


@pytest.mark.parametrize(
    ("kind", "how", "fail"),
    [
        ("data", "zeroed", "repair_kept_aside"),
        ("data", "unseen", "repair_rows_twice"),
        ("index", "cut", "repair_index_dropped"),
        ("deletions", "missing", "repair_deletions_untold"),
    ],
)
def test_58_a_repair_that_is_killed_is_finished_by_the_next(tmp_path, noted, pool, kind, how, fail):
    path, db, oracle = noted
    here = tmp_path / "db"
    shutil.copytree(db, here)
    target = files_of(here)[kind][0]
    if how == "unseen":
        flip_padding(target)
    else:
        harm(target, how, np.random.default_rng(5))
    command = ("table", "repair", "--db", here, "--table", "t")
    with memworker(*command, fail=f"{fail}:kill") as process:
        killed = process.wait()
    assert killed.code == -9, (killed.out, killed.err)
    must_heal(here, path, oracle, pool, fail)
