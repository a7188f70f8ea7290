"""Fault 62, and limits of the system: done without what is refused, or told in one true line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from memworker import EmbeddingPool
from memworker.errors import WorkerStartFailed
from memworker.models import bf16, ready_model
from memworker.pool.messages import BootFailed, decode_for_parent
from memworker.pool.spawn import _PROGRAM
from tests.faults import harness
from tests.faults.harness import arguments, memworker, write_input
from tests.faults.test_disk import fill
from tests.models.tiny import WORDS, Sizes, make_bert

# A user of nobody's, who may read and write files, as the interpreter may lie in root's folder.
UID = 50_000 + os.getpid() % 10_000
POWERS = "-all,+dac_override,+dac_read_search"
SOMEBODY = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
SOMEBODY += (f"--inh-caps={POWERS}", f"--ambient-caps={POWERS}")


def refused(done, *words):
    """Check that the command failed with one line of ours that holds the words."""
    ours = [line for line in done.err.splitlines() if line.startswith("memworker: ")]
    assert done.code == 1 and len(ours) == 1 and "Traceback" not in done.err, done.err
    for word in words:
        assert word in ours[0], ours[0]
    assert "standard output" not in ours[0]
    return ours[0]


def run(*given, **options):
    with memworker(*given, **options) as process:
        return process.wait()


# ── a cache that cannot be written ──


@contextmanager
def open_folder():
    """Make a folder that every user may go into: pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="memworker-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def models():
    """Models of each kind in directories, and a cache in which they are built."""
    with open_folder() as folder:
        yield filled(folder)


def filled(folder):
    make_bert(folder / "tiny")
    make_bert(folder / "static")
    config = {"model_type": "model2vec", "hidden_dim": 4}
    (folder / "static/config.json").write_text(json.dumps(config))
    rows = np.random.default_rng(3).standard_normal((len(WORDS), 4)).astype(np.float32)
    save_file({"embeddings": rows}, folder / "static/model.safetensors")
    cache = folder / "cache"
    wanted = [("tiny", "fp32"), ("tiny", "int8"), ("static", "fp32")]
    if not bf16.obstacle():
        wanted.append(("tiny", "bf16"))
    for name, precision in wanted:
        ready_model(folder / name, precision=precision, cache_dir=cache / "models")
    return folder


@pytest.fixture
def read_only(models, tmp_path):
    """Give a prefix under which the cache is read-only, and the environment that names it."""
    cache = tmp_path / "cache"
    shutil.copytree(models / "cache", cache)
    # As in an image: no stamp holds, and what is hashed again cannot be kept.
    for path in cache.rglob("*"):
        os.utime(path, (1, 1))
    environment = {"MEMWORKER_CACHE": str(cache)}
    if harness.may_mount():
        script = f'mount --bind {cache} {cache} && mount -o remount,ro,bind {cache} && exec "$@"'
        yield ("unshare", "-m", "sh", "-c", script, "sh"), environment
        return
    subprocess.run(["chmod", "-R", "a-w", cache], check=True)
    yield (), environment
    subprocess.run(["chmod", "-R", "u+w", cache], check=True)


EVERYTHING = """
import json, sys
from pathlib import Path
from memworker import EmbeddingPool, Memory, ingest
from memworker.ingestion.export import embed_to_file
from memworker.models import bf16
models, db = Path(sys.argv[1]), sys.argv[2]
rows = [{"id": str(n), "text": f"w{n}"} for n in range(20)]
ingest(rows, db=db, table="t", model=models / "tiny", workers=1)
for precision in ["int8"] if bf16.obstacle() else ["int8", "bf16"]:
    with EmbeddingPool(models / "tiny", precision=precision, workers=1) as pool:
        pool.embed(["w1"])
with EmbeddingPool(models / "static", workers=1) as pool, Memory(db, pool=pool) as memory:
    memory.add("w1 w2", user_id="u")
    assert len(memory.search("w1", filters={"user_id": "u"})["results"]) == 1
print("done")
"""


def test_62_read_only_cache(read_only, models, tmp_path):
    prefix, environment = read_only
    db = tmp_path / "db"
    done = run(
        models,
        db,
        program=(sys.executable, "-c", EVERYTHING),
        prefix=prefix,
        env=environment,
    )
    assert done.out == "done\n", done.err
    assert done.err == ""
    given = ("--db", db, "--table", "t", "--model", models / "tiny", "--json")
    found = run("search", "w7", *given, prefix=prefix, env=environment)
    assert json.loads(found.out)["hits"][0]["text"] == "w7", found.err
    (tmp_path / "in.jsonl").write_text('{"text": "w1"}\n')
    given = (tmp_path / "in.jsonl", "--out", tmp_path / "v.npy", "--model", models / "tiny")
    assert run("embed", *given, prefix=prefix, env=environment).code == 0
    assert np.load(tmp_path / "v.npy").shape == (1, 32)


def test_62_read_only_cache_under_a_server(read_only, models):
    prefix, environment = read_only
    given = ("serve", "--port", "0", "--model", models / "tiny", "--workers", "1")
    with memworker(*given, prefix=prefix, env=environment) as served:
        for line in served.process.stderr:
            if "http://" in line:
                break
        served.signal(harness.signal.SIGTERM)
        assert served.wait().code == 0


def test_62_a_read_only_cache_without_the_model(read_only, models, tmp_path):
    prefix, environment = read_only
    other = make_bert(tmp_path / "other", seed=8)
    write_input(tmp_path / "in.jsonl", 5)
    given = arguments(tmp_path / "in.jsonl", tmp_path / "db", model=other)
    done = run(*given, prefix=prefix, env=environment)
    refused(done, environment["MEMWORKER_CACHE"], "MEMWORKER_CACHE")


# ── nowhere to write, nowhere to live ──


def test_62_no_temporary_folder(models, tmp_path):
    """Everything is read-only but the database."""
    if not harness.may_mount():
        pytest.skip("needs the right to mount a file system (root)")
    write_input(tmp_path / "in.jsonl", 50, text="w1")
    (tmp_path / "db").mkdir()
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    shutil.copytree(models / "cache", tmp_path / "cache")
    script = (
        f"mount --bind {tmp_path} /mnt && mount -o remount,ro,bind /"
        " && for folder in /tmp /var/tmp; do mount -t tmpfs -o ro tmpfs $folder || exit; done"
        ' && cd / && exec "$@"'
    )
    prefix = ("unshare", "-m", "env", "-u", "TMPDIR", "sh", "-c", script, "sh")
    environment = {"MEMWORKER_CACHE": "/mnt/cache"}
    for model in ("echo", "/mnt/tiny"):
        table = Path(model).name
        given = arguments("/mnt/in.jsonl", "/mnt/db", model=model, table=table)
        done = run(*given, prefix=prefix, env=environment)
        assert done.code == 0 and done.err == "", done.err
    done = run("table", "optimize", "--db", "/mnt/db", "--table", "echo", prefix=prefix)
    assert done.code == 0, done.err
    # What cannot be read without going back is put into a temporary file.
    given = arguments("-", "/mnt/db", "--format", "parquet", table="p")
    with memworker(*given, prefix=prefix, stdin=subprocess.PIPE) as piped:
        refused(piped.wait(), "TMPDIR", "temporary")


@pytest.fixture
def somebody():
    """Give a folder, and the prefix of a user who is in no password file and has no home."""
    if shutil.which("setpriv") is None or os.getuid() != 0:
        pytest.skip("needs setpriv, and root to become somebody else")
    with open_folder() as folder:
        write_input(folder / "in.jsonl", 50, text="w1")
        yield folder, ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-C", folder, *SOMEBODY)


def test_62_no_home_and_no_passwd_entry(somebody, models):
    folder, prefix = somebody
    nowhere = ("env", "-u", "MEMWORKER_CACHE", *prefix)
    done = run(*arguments("in.jsonl", "db"), prefix=nowhere)
    assert done.code == 0 and done.err == "", done.err
    tiny = arguments("in.jsonl", "db", model=models / "tiny", table="tiny")
    refused(run(*tiny, prefix=nowhere), "HOME is not set", "MEMWORKER_CACHE")
    refused(run("models", "pull", "all-MiniLM-L6-v2", prefix=nowhere), "HOME is not set")
    done = run(*tiny, prefix=prefix, env={"MEMWORKER_CACHE": str(models / "cache")})
    assert done.code == 0 and done.err == "", done.err
    # "~" is a name like any other where it stands for no home.
    assert sorted(path.name for path in folder.iterdir()) == ["db", "in.jsonl"]


# ── limits of the system ──


@pytest.mark.parametrize("most", [1, 6])
def test_few_threads_and_processes(somebody, models, most):
    """Refused are numpy's threads, and LanceDB's, which would wait for ever."""
    folder, prefix = somebody
    prefix = ("prlimit", f"--nproc={most}", *prefix)
    given = arguments(folder / "in.jsonl", folder / "db", model=models / "tiny")
    done = run(*given, prefix=prefix, env={"MEMWORKER_CACHE": str(models / "cache")})
    line = refused(done, "thread", f"ulimit -u {most}")
    assert "interrupted" not in line


POOL = """
from memworker import EmbeddingPool, errors
try:
    with EmbeddingPool("echo", workers=2) as pool:
        pool.embed(["text"])
except errors.MemworkerError as error:
    raise SystemExit(f"memworker: {error}")
"""


@pytest.mark.parametrize("most", [4, 5, 6])
def test_workers_that_get_no_thread_or_process(somebody, most):
    """Where the parent has its threads already, workers are the ones to be refused."""
    _, prefix = somebody
    prefix = ("prlimit", f"--nproc={most}", *prefix)
    done = run(program=(sys.executable, "-c", POOL), prefix=prefix)
    line = refused(done, f"ulimit -u {most}", "could not")
    assert "SIGKILL" not in line and "out of memory" not in line


@pytest.mark.parametrize("mebibytes", [60, 200, 500])
def test_little_address_space(models, tmp_path, mebibytes):
    """At each of these another library does not fit."""
    write_input(tmp_path / "in.jsonl", 50, text="w1")
    prefix = ("prlimit", f"--as={mebibytes << 20}")
    given = arguments(tmp_path / "in.jsonl", tmp_path / "db", model=models / "tiny")
    done = run(*given, prefix=prefix, env={"MEMWORKER_CACHE": str(models / "cache")})
    assert "Traceback" not in done.err, done.err
    assert done.code == 0 or "emory" in done.err or "ulimit -v" in done.err, done.err
    assert len(done.err.splitlines()) <= 3, done.err


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("megabytes", [1, 14])
def test_full_cache_disk(tmp_path, small_disk, megabytes, precision):
    """Too little for the graph, and for packing it."""
    model = make_bert(tmp_path / "model", sizes=Sizes(hidden=64, inner=256, vocabulary=30_000))
    write_input(tmp_path / "in.jsonl", 5)
    with small_disk(megabytes) as disk:
        given = arguments(tmp_path / "in.jsonl", tmp_path / "db", model=model)
        done = run(*given, "--precision", precision, env={"MEMWORKER_CACHE": str(disk)})
        refused(done, "No space left on device", str(disk), "MEMWORKER_CACHE")
        assert [path.name for path in (disk / "models/built").iterdir()] == []


def test_a_warm_cache_on_a_full_disk(models, tmp_path, small_disk):
    write_input(tmp_path / "in.jsonl", 5, text="w1")
    with small_disk(8) as disk:
        shutil.copytree(models / "cache", disk / "cache")
        for path in disk.rglob("*"):
            os.utime(path, (1, 1))
        fill(disk)
        given = arguments(tmp_path / "in.jsonl", tmp_path / "db", model=models / "tiny")
        done = run(*given, env={"MEMWORKER_CACHE": f"{disk}/cache"})
        assert done.code == 0 and done.err == "", done.err


# ── workers that do not come as far as their work ──


class Lost:
    """A loader whose module the worker cannot import."""

    dim = 4

    def __call__(self):
        raise AssertionError("never reached")

    def __reduce__(self):
        return __import__, ("there_is_no_such_module",)


def test_a_loader_that_cannot_be_imported_is_told(capfd):
    with pytest.raises(WorkerStartFailed, match="ModuleNotFoundError.*there_is_no_such_module"):
        EmbeddingPool(Lost(), workers=1).start()
    assert capfd.readouterr().err == ""


def test_the_message_that_is_put_together_by_hand(tmp_path):
    """Where nothing can be imported, a worker says so in the words of `messages`."""
    reader, writer = os.pipe()
    program = _PROGRAM.format(settings={}, handles={"pipe_handle": 99}, channel=writer)
    broken = program.replace("import memworker.pool.worker", "raise MemoryError('é' * 3000)")
    done = subprocess.run([sys.executable, "-c", broken], pass_fds=[writer])
    os.close(writer)
    assert done.returncode == 1
    with open(reader, "rb") as pipe:
        said = pipe.read()
    assert int.from_bytes(said[:4], "big") == len(said) - 4
    message = decode_for_parent(said[4:])
    assert isinstance(message, BootFailed) and message.error.startswith("MemoryError: éé")
