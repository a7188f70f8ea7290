"""`dim`: the first numbers of each vector, to length one again, part of what a table is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.reference import export_reference
from memworker import Memory
from memworker.cli.app import app
from memworker.errors import MemworkerError, TableMismatch, UsageError
from memworker.memory import pool_like
from memworker.models import ready_model
from memworker.pool import EmbeddingPool
from memworker.pool.engine import resolve
from memworker.store import Table
from tests.models.test_modules import DENSE, PLAIN, write_dense, write_modules
from tests.models.tiny import make_bert

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model whose whole vectors are not of length one."""
    monkeypatch.setenv("MEMWORKER_CACHE", str(tmp_path / "home"))
    folder = make_bert(tmp_path / "model")
    write_dense(folder, "2_Dense", (32, 24))
    write_modules(folder, *PLAIN, DENSE[0])
    return folder


def embed(model, **options):
    with EmbeddingPool(model, workers=1, **options) as pool:
        return pool.embed(TEXTS)


def first(vectors, dim):
    return vectors[:, :dim] / np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True)


def test_the_first_numbers_to_length_one(folder, tmp_path):
    foreign = tmp_path / "foreign"
    export_reference(ready_model(make_bert(tmp_path / "plain")), foreign)
    for model in (folder, foreign):
        whole = embed(model)
        np.testing.assert_allclose(embed(model, dim=8), first(whole, 8), atol=1e-6)
    np.testing.assert_array_equal(embed(foreign, dim=32), whole)


def test_it_is_another_vector_space_of_the_same_files(folder):
    whole, cut, other = (ready_model(folder, dim=dim) for dim in (None, 8, 9))
    assert len({whole.fingerprint, cut.fingerprint, other.fingerprint}) == 3
    assert whole.graph == cut.graph
    assert whole.cut_to(8) == cut and ready_model(folder, dim=24) == whole
    made = resolve(cut).identity
    assert (made.dim, made.cut_from, made.normalized) == (8, 24, True)
    assert "first 8 of its 24 numbers" in made.notes[0]
    assert resolve(whole).identity.notes == ()


def test_who_is_known_to_be_trained_for_it(folder):
    (folder / "README.md").write_text("---\ntags:\n- loss:MatryoshkaLoss\n---\n")
    made = resolve(folder, dim=8).identity
    assert made.matryoshka and made.notes == ()


@pytest.mark.parametrize("dim", [0, -1, 25, 1.5, "many", True])
def test_numbers_that_are_refused(folder, dim):
    with pytest.raises(UsageError, match="dim"):
        resolve(folder, dim=dim)
    with pytest.raises(UsageError, match="dim"):
        resolve("echo" if dim != 25 else resolve("echo"), dim=dim)


def command(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, MemworkerError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_table_keeps_its_number(folder, tmp_path):
    texts, db = tmp_path / "texts.txt", tmp_path / "db"
    texts.write_text("\n".join(TEXTS))
    job = ("ingest", texts, "--db", db, "--table", "t", "--model", folder, "--workers", 1)
    done = command(*job, "--dim", 8, "--json")
    assert "Matryoshka" in done.stderr and json.loads(done.stdout)["written"] == 3
    assert json.loads(command(*job, "--dim", 8, "--json").stdout)["written"] == 0
    for other in (("--dim", 9), ()):
        with pytest.raises(TableMismatch, match=r"dim 8, not.*\(--dim 8\)"):
            command(*job, *other)
    table = Table.open(db, "t")
    assert table.space.dim == 8
    with pool_like(table, folder, 1) as pool:
        assert pool.identity.fingerprint == table.space.fingerprint
        (hit,) = table.search(pool.embed(TEXTS[:1])[0], limit=1)
    assert hit.text == TEXTS[0] and hit.score > 0.999
    anew = ("table", "reembed", "--db", db, "--table", "t", "--model", folder, "--workers", 1)
    assert json.loads(command(*anew, "--dim", 4, "--json").stdout)["switched"]
    assert Table.open(db, "t").space.dim == 4


def test_memories_are_opened_with_the_number_they_have(tmp_path):
    with Memory(tmp_path / "db", model="wordllama-256", workers=1, dim=64) as memory:
        memory.add("tea with milk", user_id="alice")
    with pytest.raises(TableMismatch, match="dim 64, not 256"):
        Memory(tmp_path / "db", model="wordllama-256", workers=1)
    with Memory.open(tmp_path / "db", workers=1) as memory:
        found = memory.search("tea with milk", filters={"user_id": "alice"})
        assert found["results"][0]["score"] > 0.99
    scope = ("--user-id", "alice", "--workers", 1)
    command("memory", "add", tmp_path / "db", "green tea", *scope)
    assert Table.open(tmp_path / "db", "memories").space.dim == 64
