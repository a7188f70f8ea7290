"""The sample of memory texts that the package ships."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_sample"
SHA256 = "ce2b32e0b2f515f1312eaecbb7deb128d9ea711a43b3716e6c64cd510924ad17"


@pytest.fixture(scope="module")
def shipped() -> bytes:
    return gzip.decompress(files("memworker").joinpath("data/memories.jsonl.gz").read_bytes())


@pytest.fixture(scope="module")
def rows(shipped):
    return [json.loads(line) for line in shipped.splitlines()]


def test_is_the_pinned_text(shipped):
    assert hashlib.sha256(shipped).hexdigest() == SHA256


def test_the_generator_makes_it_again(shipped, tmp_path):
    out = tmp_path / "again.jsonl.gz"
    subprocess.run([sys.executable, SCRIPT, out], check=True, stdout=subprocess.DEVNULL)
    assert gzip.decompress(out.read_bytes()) == shipped


def test_has_4000_rows_of_40_users_and_nothing_twice(rows):
    assert len(rows) == 4000
    assert len({row["user_id"] for row in rows}) == 40
    assert len({row["id"] for row in rows}) == 4000
    assert len({row["text"] for row in rows}) == 4000
    assert all(set(row) == {"id", "user_id", "text", "kind", "date"} for row in rows)


def test_lengths_are_spread_as_in_real_memories(rows):
    words = sorted(len(row["text"].split()) for row in rows)
    assert words[0] <= 3
    assert 10 <= words[2000] <= 18
    assert words[3960] >= 100
    assert 150 <= words[-1] <= 400


def test_has_no_slot_left_open(rows):
    assert not [row["text"] for row in rows if set("{}|@") & set(row["text"])]


@pytest.mark.parametrize("topic", ["allergy", "vacation", "database", "vet", "insurance"])
def test_answers_to_everyday_questions_are_in_it(rows, topic):
    assert sum(topic in row["text"].lower() for row in rows) >= 10


def test_is_small(shipped):
    assert files("memworker").joinpath("data/memories.jsonl.gz").stat().st_size < 300_000
    assert len(set(shipped.decode().lower().split())) > 3000
