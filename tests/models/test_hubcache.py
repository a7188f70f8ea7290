"""What other programs have downloaded, and repositories that no catalogue names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from bench.reference import export_reference
from memworker.errors import ModelCorrupt, ModelUnavailable, UnknownModel
from memworker.models import hub, list_models, ready_model, verify_model
from tests import PATIENCE_S
from tests.models.test_modules import DENSE, PLAIN, write_dense, write_modules
from tests.models.tiny import Sizes, make_bert

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = "BAAI/bge-small-en-v1.5"


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
    place = tmp_path / "hf" / "hub"
    place.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path / "fastembed"))
    return place


def store(place: Path, repo: str, folder: Path) -> Path:
    """Lay a folder into a cache as the hub's client does: blobs, and a snapshot of links."""
    home = place / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        link = snapshot / path.relative_to(folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        # Small files are named by git's own hash.
        blob = home / "blobs" / (digest if path.stat().st_size > 4096 else digest[:40])
        for made in (blob, link):
            made.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


def listed(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def folder(tmp_path):
    folder = make_bert(tmp_path / "model")
    write_dense(folder, "2_Dense", (32, 24))
    write_modules(folder, *PLAIN, DENSE[0])
    return folder


def test_a_repository_is_used_where_another_program_has_put_it(hf_cache, folder, cache):
    snapshot = store(hf_cache, "acme/e5-small-v2", folder)
    before = listed(hf_cache)
    ready = ready_model("acme/e5-small-v2", cache_dir=cache)
    assert (ready.spec.name, ready.spec.dim) == ("acme/e5-small-v2", 24)
    assert ready.spec.query_prefix == "query: " and ready.tokenizer.parent == snapshot
    assert listed(hf_cache) == before and not (cache / "files").exists()
    assert len(verify_model("acme/e5-small-v2", cache_dir=cache)) >= 5


def test_a_snapshot_without_a_branch_and_files_that_hashes_name(hf_cache, folder, minilm, cache):
    snapshot = store(hf_cache, "acme/tiny", folder)
    shutil.rmtree(snapshot.parent.parent / "refs")
    assert ready_model("Acme/Tiny", cache_dir=cache).tokenizer.parent == snapshot
    # The catalogue's commit is another one, the files are those that it pins.
    snapshot = store(hf_cache, "sentence-transformers/all-MiniLM-L6-v2", minilm.tokenizer.parent)
    ready = ready_model("all-MiniLM-L6-v2", cache_dir=cache)
    assert ready.tokenizer.parent == snapshot and ready.fingerprint == minilm.fingerprint


def test_a_damaged_blob_is_refused(hf_cache, folder, cache):
    snapshot = store(hf_cache, "acme/tiny", folder)
    ready_model("acme/tiny", cache_dir=cache)
    blob = (snapshot / "model.safetensors").resolve()
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(ModelCorrupt, match=rf"model\.safetensors has SHA-256 .* {blob.name}"):
        ready_model("acme/tiny", cache_dir=cache)


def test_parts_of_a_repository_are_no_model(hf_cache, folder, cache):
    (folder / "model.safetensors").unlink()
    store(hf_cache, "acme/tiny", folder)
    with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE is set") as refused:
        ready_model("acme/tiny", cache_dir=cache)
    assert str(hf_cache) in str(refused.value) and "--model DIR" in str(refused.value)


@pytest.fixture
def stand_in(tmp_path):
    """A small stand-in for what fastembed has of a model."""
    served = tmp_path / "served"
    sizes = Sizes(hidden=384, layers=1, heads=12, inner=8, positions=64)
    model = ready_model(make_bert(tmp_path / "m", sizes=sizes), cache_dir=tmp_path / "c")
    import onnx

    exported = export_reference(model, served)
    onnx.save(onnx.load(str(exported)), str(served / "model_optimized.onnx"))
    return served


@pytest.mark.parametrize("whose", ["hub", "fastembed"])
def test_a_catalogue_model_is_used_where_it_lies(hf_cache, stand_in, tmp_path, cache, whose):
    place = hf_cache if whose == "hub" else tmp_path / "fastembed"
    snapshot = store(place, "qdrant/bge-small-en-v1.5-onnx-q", stand_in)
    ready = ready_model(SMALL, cache_dir=cache)
    assert ready.graph == snapshot / "model_optimized.onnx" and ready.max_tokens == 64
    assert not (cache / "files").exists()
    found = {listing.spec.name: listing.cached for listing in list_models(cache_dir=cache)}
    assert found[SMALL] and not found["all-MiniLM-L6-v2"]


def test_a_pinned_file_that_is_another_is_not_used(hf_cache, folder, cache):
    store(hf_cache, "sentence-transformers/all-MiniLM-L6-v2", folder)
    home = hf_cache / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots"
    with pytest.raises(ModelUnavailable, match="SHA-256 .*, expected") as refused:
        ready_model("minilm", cache_dir=cache)
    assert "offline: HF_HUB_OFFLINE is set" in str(refused.value)
    assert str(home / COMMIT) in str(refused.value)


def test_where_it_was_looked_for_is_said(hf_cache, tmp_path, cache):
    with pytest.raises(ModelUnavailable) as refused:
        ready_model(SMALL, cache_dir=cache)
    for said in ("model_optimized.onnx", str(hf_cache), str(tmp_path / "fastembed")):
        assert said in str(refused.value)
    assert "\n" not in str(refused.value)


class Hub(BaseHTTPRequestHandler):
    """Serves what `served` holds, and notes what it was asked for."""

    served: Path
    asked: list[tuple[str, str]]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        code, data, more = self.found(self.path)
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def found(self, path):
        if "secret" in path:
            return 401, b"", {"X-Error-Code": "RepoNotFound"}
        if "gated" in path:
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        if path.startswith("/api/models/"):
            return self.listing(path.removeprefix("/api/models/").partition("?")[0])
        repo, _, name = path[1:].partition("/resolve/main/")
        file = self.served / repo / name
        if path == "/" or not file.is_file():
            code = 200 if path == "/" else 404
            return code, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        etag = f'"{name.replace("/", "-")}"'
        return 200, file.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": etag}

    def listing(self, repo):
        home = self.served / repo
        files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        told = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, json.dumps(told).encode(), {"Content-Type": "application/json"}

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """A hub on this machine; gives its address, its folder and what it was asked for."""
    Hub.served, Hub.asked = tmp_path / "repos", []
    made = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}", Hub.served, Hub.asked
    made.shutdown()
    thread.join()
    made.server_close()


READY = """
import sys
from memworker.errors import MemworkerError
from memworker.models import ready_model
for name in sys.argv[2:]:
    try:
        ready = ready_model(name, cache_dir=sys.argv[1])
        print(ready.spec.name, ready.spec.dim, ready.tokenizer.parent, ready.precision)
    except MemworkerError as error:
        print(f"{type(error).__name__}: {error}")
"""


def readied(cache, *names, **environment):
    command = [sys.executable, "-c", READY, str(cache), *names]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=kept | environment, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_repositories_are_fetched_and_refusals_told(server, folder, stand_in, tmp_path, cache):
    endpoint, served, asked = server
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"not wanted")
    shutil.copytree(folder, served / "acme" / "tiny")
    foreign = served / "acme" / "foreign"
    shutil.copytree(stand_in, foreign)
    config = json.loads((foreign / "config.json").read_text()) | {"model_type": "own"}
    (foreign / "config.json").write_text(json.dumps(config))
    names = ("acme/tiny", "acme/foreign", "acme/secret", "acme/gated")
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
    tiny, other, secret, gated = readied(cache, *names, **settings)
    assert tiny == f"acme/tiny 24 {cache / 'files' / 'acme--tiny'} fp32"
    assert other.startswith("acme/foreign 384")
    assert "no repository acme/secret, or it is private; no token is set" in secret
    assert "acme/gated is gated: accept its terms" in gated and "HF_TOKEN" in gated
    got = {path.rpartition("/resolve/main/")[2] for path, _ in asked if "/acme/tiny/" in path}
    assert {"model.safetensors", "2_Dense/model.safetensors", "modules.json"} <= got
    assert not {name for name in got if "pytorch" in name or "onnx" in name}
    # Once fetched nothing is asked for again; and an offline switch tries no connection.
    asked.clear()
    settings |= {"HF_TOKEN": "hf_of_mine"}
    again, refused = readied(cache, "acme/tiny", "acme/gated", **settings)
    assert again == tiny and "the token that is set" in refused
    assert {who for path, who in asked if "gated" in path} == {"Bearer hf_of_mine"}
    asked.clear()
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        again, refused = readied(cache, "acme/tiny", "acme/none", **settings, **{switch: "1"})
        assert again == tiny and f"{switch} is set" in refused
    assert asked == []


def test_a_firewall_that_drops_packets_costs_its_time_once():
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        waiting = []
        for _ in range(4):  # A full queue: what comes now gets no answer at all.
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(hole.getsockname())
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        began = time.monotonic()
        probes = [hub.probe(url), hub.connection(url)]
        assert all(
            "did not answer" in probe.told() or "timed out" in probe.told() for probe in probes
        )
        first = time.monotonic() - began
        assert 4 < first < 5 + PATIENCE_S / 4
        assert hub.probe(url) is probes[0]
        for each in probes:
            # What still waits for an answer ends by its own bound, and closes its socket.
            each._asking.join(PATIENCE_S)
        for each in waiting:
            each.close()
