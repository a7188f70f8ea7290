"""Fault 61: what dependencies do besides, seen from the system calls of the main jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memworker.models.cache import ModelCache
from tests import PATIENCE_S
from tests.faults import harness
from tests.models.tiny import make_bert

JOBS = """
import http.client, json, os, re, signal, subprocess, sys
from memworker import EmbeddingPool, Memory, Table
from memworker.models import bf16
memworker, model, cache = sys.argv[1:]

def run(*arguments, **environment):
    subprocess.run([memworker, *arguments], check=True, env=os.environ | environment)

def serve():
    server = subprocess.Popen(
        [memworker, "serve", "--port", "0", "--workers", "1"], stderr=subprocess.PIPE, text=True)
    port = next(found[1] for line in server.stderr if (found := re.search(r":(\\d+)\\b", line)))
    client = http.client.HTTPConnection("127.0.0.1", int(port))
    body = json.dumps({"model": "all-MiniLM-L6-v2", "input": "tea"})
    client.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    assert client.getresponse().status == 200
    server.send_signal(signal.SIGTERM)
    server.communicate()

run("ingest", "in.jsonl", "--db", "db", "--table", "t")
run("search", "tea", "--db", "db", "--table", "t", "--json")
run("embed", "in.jsonl", "--out", "v.npy", "--model", model, "--precision", "int8",
    MEMWORKER_CACHE=cache)
if not bf16.obstacle():
    run("embed", "in.jsonl", "--out", "v.npy", "--overwrite", "--model", model,
        "--precision", "bf16", MEMWORKER_CACHE=cache)
run("models", "list", MEMWORKER_CACHE=cache)
serve()
with Memory("db", table="memories") as memories:
    memories.add("I like tea", user_id="u")
    assert memories.search("tea", filters={"user_id": "u"})
table = Table.open("db", "t")
table.maintenance.ensure_index("text")
table.maintenance.ensure_index("vector")
table.optimize()
"""
# What opens a file for writing, makes or removes an entry; what reaches for another machine.
CALLS = "open,openat,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,link,linkat"
CALLS += ",symlink,symlinkat,unlink,unlinkat,rmdir,truncate,connect,sendto,sendmsg,sendmmsg"
OPTIONS = ("-f", "--seccomp-bpf", "-y", "-qq", "-s", "300")
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
NAMES = re.compile(r"/etc/(resolv\.conf|hosts|nsswitch\.conf|gai\.conf|host\.conf)")


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Run the jobs in a folder of their own; give it, and the lines of the trace."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace to see the calls")
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir()
    # ONNX Runtime's telemetry follows this link and empties what it points to.
    (folder / "target").write_text("precious")
    (folder / "tmp/.ses").symlink_to(folder / "target")
    harness.write_input(folder / "work/in.jsonl", 300)
    (folder / "jobs.py").write_text(JOBS)
    command = [sys.executable, folder / "jobs.py", Path(sys.executable).with_name("memworker")]
    command += [make_bert(folder / "model"), folder / "cache"]
    trace = folder / "trace"
    done = subprocess.run(
        ["strace", *OPTIONS, "-e", f"trace={CALLS}", "-o", trace, *command],
        cwd=folder / "work",
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    if "ptrace" in done.stderr:
        pytest.skip("may not trace here")
    assert done.returncode == 0, done.stderr
    return folder, trace.read_text().splitlines()


def _environment(folder):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return kept | {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "MEMWORKER_CACHE": str(ModelCache.locate().root.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def test_61_nothing_is_looked_up_or_connected_to(traced):
    _, lines = traced
    outward = [
        line
        for line in lines
        if re.search(r"sa_family=AF_INET", line) and not re.search(r'"(127\.0\.0\.1|::1)"', line)
    ]
    assert not outward
    assert not [line for line in lines if NAMES.search(line)]
    assert not [line for line in lines if "nscd" in line and "ENOENT" not in line]


def test_61_nothing_is_written_elsewhere(traced):
    """The places are those that SECURITY.md names."""
    folder, lines = traced
    places = [f"{folder}/cache", str(ModelCache.locate().root.parent), "/dev/null"]
    places += [f"{folder}/work/{name}" for name in ("db", "v.npy", ".v.npy", "v.npy.rejects.jsonl")]
    elsewhere = [
        line
        for line in filter(_writes, lines)
        if not all(path.startswith(tuple(places)) for path in _paths(line, folder / "work"))
    ]
    assert not elsewhere, "\n".join(elsewhere)
    assert any("db/t.lance/data" in line for line in lines), "the trace is not of the jobs"


def test_61_nothing_is_left_in_the_home_or_temporary_folder(traced):
    folder, _ = traced
    assert list((folder / "home").iterdir()) == []
    assert [path.name for path in (folder / "tmp").iterdir()] == [".ses"]
    assert (folder / "target").read_text() == "precious"
    assert sorted(path.name for path in (folder / "work").iterdir()) == ["db", "in.jsonl", "v.npy"]


def _writes(line):
    call = re.search(r"(\w+)\(", line)
    if call is None or call[1] in ("connect", "sendto", "sendmsg", "sendmmsg"):
        return False
    return bool(WRITES.search(line)) if call[1].startswith("open") else True


def _paths(line, working):
    """Give the paths that a call names, from the folders that they are relative to."""
    base = re.search(r"\(\w+<([^>]+)>", line)
    folder = base[1] if base else working
    return [os.path.normpath(os.path.join(folder, path)) for path in re.findall(r'"([^"]+)"', line)]
