"""`memworker doctor`: what it finds is true, what is wrong is said, and it ends in time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from memworker.doctor import examine_machine
from memworker.doctor.places import disk
from memworker.doctor.system import processor
from tests.models.tiny import make_bert


def doctor(*given, limits=(), **environment):
    def limit():
        for kind, most in limits:
            resource.setrlimit(kind, (most, most))

    command = [sys.executable, "-m", "memworker", "doctor", *map(str, given)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        preexec_fn=limit if limits else None,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "tiny")


def test_facts_are_those_of_the_machine(model, tmp_path):
    done = doctor("--json", "--model", model, "--db", tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    told = json.loads(done.stdout)
    assert told["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert told["cores"]["allowed"] == len(os.sched_getaffinity(0))
    assert told["disk"]["folder"] == str(tmp_path) and told["disk"]["writable"]
    assert list(tmp_path.iterdir()) == []
    assert told["model_cache"]["cached"] is True
    assert told["versions"]["python"] == sys.version.split()[0]


def test_the_pool_is_tried(model):
    pool = {each.topic: each for each in examine_machine(Path(), str(model), patience_s=60.0)}[
        "pool"
    ]
    assert pool.facts["precision"] == "fp32" and pool.facts["workers"] >= 1
    assert pool.facts["tokens_per_s"] > 0 and "tokens/s" in pool.told


def test_what_is_not_ready_in_time_is_said_with_the_way_to_it(model):
    pool = list(examine_machine(Path(), str(model), "int8", patience_s=0.0))[-1]
    assert pool.topic == "pool" and "not ready" in pool.told
    assert f"memworker models pull {model} --precision int8" in pool.advice[0]


def test_a_precision_that_the_model_has_not_is_said(model):
    pool = list(examine_machine(Path(), str(model), "fp7", patience_s=60.0))[-1]
    assert pool.told.startswith("cannot be had: ") and "fp7" in pool.advice[0]


def test_low_limits_are_said(model):
    kinds = [(resource.RLIMIT_NOFILE, 256), (resource.RLIMIT_FSIZE, 1 << 30)]
    done = doctor("--model", model, limits=kinds)
    assert "! A process may have 256 files open" in done.stdout
    assert "! Files may have 1.0 GiB at most" in done.stdout


def test_a_model_that_is_not_there_is_not_fetched(tmp_path):
    done = doctor(MEMWORKER_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and not (tmp_path / "cache").exists()
    assert "is not there yet" in done.stdout
    assert "nothing is fetched (HF_HUB_OFFLINE" in done.stdout and "models pull" in done.stdout
    assert "\npool " not in done.stdout


def test_a_model_of_no_name_is_a_usage_error():
    done = doctor("--model", "no-such-model")
    assert done.returncode == 2 and "'no-such-model'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_of_a_bucket_it_is_the_folder_of_this_machine(model, tmp_path):
    done = doctor(
        "--json", "--model", model, "--db", "s3://bucket/db", MEMWORKER_STATE=str(tmp_path / "own")
    )
    assert json.loads(done.stdout)["disk"]["folder"] == str(tmp_path)
    refused = doctor("--model", model, "--db", "ftp://bucket/db")
    assert refused.returncode == 2 and "ftp://bucket/db" in refused.stderr


def test_where_nothing_can_be_written():
    found = disk(Path("/proc/self/no-such"))
    assert found.facts["writable"] is False and found.facts["locks"] is None
    assert "cannot be written" in found.told and "point --db" in found.advice[0]


@pytest.mark.parametrize(
    ("flags", "advised"),
    [({"avx2", "avx512_vnni"}, ()), ({"avx2"}, ("int8",)), ({"sse2"}, ("AVX2",)), (set(), ())],
)
def test_what_the_instructions_mean(flags, advised):
    found = processor(flags)
    assert len(found.advice) == len(advised)
    assert all(word in line for word, line in zip(advised, found.advice, strict=True))
