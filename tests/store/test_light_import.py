"""LanceDB is imported without its REST client's API, which can be had as before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import PATIENCE_S

CLIENT = "lance_namespace_urllib3_client"
IMPORTED = f"""
import sys
from memworker.store import Table
from memworker.errors import TableNotFound
try:
    Table.open(sys.argv[1], "t")
except TableNotFound:
    pass
assert "lancedb" in sys.modules
loaded = [name for name in sys.modules if name.startswith("{CLIENT}.api.")]
assert not loaded, loaded

import {CLIENT} as client
from {CLIENT} import TableApi
from {CLIENT}.api import BranchApi
from {CLIENT}.api.tag_api import TagApi
for api in (TableApi, BranchApi, TagApi, client.IndexApi):
    assert api.__module__.startswith("{CLIENT}.api.") and hasattr(api, "__init__")
    assert sys.modules[api.__module__].__file__.endswith("_api.py")
    assert not hasattr(api, "stands_in") and isinstance(api(), api)
assert client.TagApi is TagApi
try:
    client.nothing
except AttributeError as error:
    print(error)
"""


def test_the_client_is_loaded_when_it_is_asked_for(tmp_path):
    pytest.importorskip(CLIENT)
    (tmp_path / "db").mkdir()
    command = [sys.executable, "-W", "error", "-c", IMPORTED, tmp_path / "db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"module '{CLIENT}' has no attribute 'nothing'\n"


def test_who_got_a_stand_in_meanwhile_gets_the_real_thing():
    pytest.importorskip(CLIENT)
    code = f"""
from memworker.store.light_import import without_rest_client
with without_rest_client():
    from {CLIENT} import TableApi
assert TableApi.stands_in
print(type(TableApi()).__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{CLIENT}.api.table_api\n", done.stderr
