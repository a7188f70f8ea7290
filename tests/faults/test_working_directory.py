"""Fault 60: modules of any name in the working directory, which nobody may run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from memworker import interpreters
from tests.models.tiny import make_bert

COMMAND = str(Path(sys.executable).with_name("memworker"))
# What Python itself imports to run `-m`, before any line of ours.
INSTALLED = {name for name in packages_distributions() if name.isidentifier()}
EVERYTHING = INSTALLED | set(sys.stdlib_module_names) | {"memworker", "sitecustomize"}
PLANTED = """
import os, sys
with open({log!r}, "a") as log:
    log.write(f"{{__name__}} in {{sys.argv}}\\n")
raise ImportError("planted")
"""


class Planted:
    """A working directory with a module for each name; `ran` says which were run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cwd"
        self.cache = folder / "cache"
        self.log = folder / "ran"
        self.folder.mkdir()
        self.model = make_bert(folder / "model")
        self.names = EVERYTHING
        self.input = folder / "in.jsonl"
        rows = ({"id": f"id-{n}", "text": f"w{n % 59} w{n % 7}"} for n in range(40))
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def plant(self, names) -> None:
        for name in names:
            (self.folder / f"{name}.py").write_text(PLANTED.format(log=str(self.log)))

    def run(self, *command, **environment):
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=os.environ | {"MEMWORKER_CACHE": str(self.cache)} | environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert not self.log.exists(), self.log.read_text()
        return done.stdout


@pytest.fixture
def planted(tmp_path):
    made = Planted(tmp_path)
    made.plant(EVERYTHING)
    return made


def test_the_planted_modules_can_run(planted):
    subprocess.run([sys.executable, "-c", "import numpy"], cwd=planted.folder, capture_output=True)
    assert planted.log.read_text().startswith("numpy in")


def test_60_by_the_command(planted, tmp_path):
    """Builds, packs and calibrates, measures the machine, and starts workers."""
    job = ("ingest", planted.input, "--db", tmp_path / "db", "--table", "t", "--workers", "2")
    out = planted.run(COMMAND, *job, "--model", planted.model, "--precision", "int8", "--json")
    assert json.loads(out)["written"] == 40
    assert "gemm flops" in (planted.cache / "machine.json").read_text()


def test_60_tune_and_the_catalogue(planted):
    job = ("tune", planted.input, "--model", planted.model, "--precision", "fp32")
    planted.run(COMMAND, *job, "--seconds", "1")
    assert "bge-small" in planted.run(COMMAND, "models", "list", "--json")


SCRIPT = """
from memworker import EmbeddingPool
import mine
with EmbeddingPool({model}, workers=1) as pool:
    print(len(pool.embed(["w1 w2"])[0]))
"""
LOADER = """
from memworker.pool.echo import EchoEncoder
class Loader:
    dim = 8
    def __call__(self):
        import beside
        return EchoEncoder(beside.DIM)
"""


@pytest.mark.parametrize("model", ["'echo'", "MODEL", "mine.Loader()"])
def test_60_by_a_script_that_lies_elsewhere(planted, tmp_path, model):
    """What lies beside the script is the caller's, and a loader of theirs finds it."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    code = SCRIPT.format(model=model.replace("MODEL", repr(str(planted.model))))
    (home / "script.py").write_text(code)
    (home / "mine.py").write_text(LOADER)
    (home / "beside.py").write_text("DIM = 8")
    out = planted.run(sys.executable, home / "script.py")
    assert int(out) == {"'echo'": 384, "MODEL": 32, "mine.Loader()": 8}[model]


def test_60_as_a_module(tmp_path):
    """Python looks for `-m`'s own modules in the working directory; for ours it does not."""
    made = Planted(tmp_path)
    made.plant(INSTALLED - {"memworker"})
    job = ("ingest", made.input, "--db", tmp_path / "db", "--table", "t", "--model", "echo")
    made.run(sys.executable, "-m", "memworker", *job, "--json")


def test_60_pip(planted):
    planted.run(*interpreters.module_command("pip", "--version"))


def test_a_path_that_was_asked_for_stays(tmp_path):
    code = "import memworker.interpreters as i; print(*i.our_path(), sep='\\n')"
    asked = tmp_path / "asked"
    asked.mkdir()
    for folder, stays in ((asked, True), (tmp_path, False)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(asked)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (str(folder) in done.stdout.splitlines()) is stays


def test_a_working_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, sys; os.rmdir(sys.argv[1])\n"
        "from memworker import EmbeddingPool\n"
        "with EmbeddingPool('echo', workers=1) as pool: print(pool.embed(['four'])[0, 1])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, gone],
        cwd=gone,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "4.0\n", done.stderr
