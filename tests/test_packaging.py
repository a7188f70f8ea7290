"""What is published: what the two distributions hold, and that other Pythons can use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import PATIENCE_S

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def built(kind, source, folder):
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=PATIENCE_S)
    (path,) = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    packed = built("sdist", ROOT, folder)
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / packed.name.removesuffix(".tar.gz")


def tracked(*kinds):
    done = subprocess.run(["git", "ls-files", *kinds], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def test_the_source_holds_what_is_in_git_and_no_more(source):
    held = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    told = tracked() | set(new_files())
    left_out = {name for name in told if name.startswith((".ci/", ".github/"))}
    assert held - {"PKG-INFO"} <= told
    assert told - left_out - held == set()


def new_files():
    """What is in nobody's .gitignore, but not added yet."""
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_wheel_is_built_from_the_source_and_holds_the_package_alone(source, tmp_path):
    with zipfile.ZipFile(built("wheel", source, tmp_path)) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [name for name in names if name.endswith("dist-info/METADATA")]
        told = wheel.read(metadata).decode()
    package = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    kept = {
        str(path.relative_to(source))
        for path in (source / "memworker").rglob("*")
        if path.is_file()
    }
    assert package == kept
    assert {Path(name).suffix for name in package} == {".py", ".pyi", ".typed", ".gz", ".html"}
    assert "memworker/py.typed" in package and "memworker/data/memories.jsonl.gz" in package
    for line in (
        "License-Expression: Apache-2.0",
        f"Requires-Python: {PROJECT['requires-python']}",
    ):
        assert line in told.splitlines()


def test_what_is_said_of_pythons_agrees():
    pattern = r"Programming Language :: Python :: 3\.(\d+)$"
    minors = [
        int(match[1]) for each in PROJECT["classifiers"] if (match := re.match(pattern, each))
    ]
    first, last = min(minors), max(minors)
    assert sorted(minors) == list(range(first, last + 1))
    assert PROJECT["requires-python"] == f">=3.{first}"
    assert f"Python 3.{first} to 3.{last}." in (ROOT / "README.md").read_text()


def test_the_wheel_works_on_the_other_pythons_of_this_machine(tmp_path):
    """The core tests on each, and all at the lower bounds, are left to `scripts/versions`."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/versions", "--smoke", "--others"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^tried (none|3\.\d+)", done.stdout, re.M), done.stdout
