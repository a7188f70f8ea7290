"""Values of every kind at a Memory's doors: kept exactly or refused, and never a hang."""

from __future__ import annotations

import enum
import http
import subprocess
import sys
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
import pytest

from memworker.errors import UsageError
from tests import PATIENCE_S


class User(str, enum.Enum):  # noqa: UP042
    ALICE = "alice"


class Limit(enum.IntEnum):
    TWO = 2


def test_a_subclass_of_int_does_not_hang_the_interpreter(tmp_path):
    """In a process of its own: a loop in C that holds the lock can only be killed."""
    code = (
        "import http, sys\n"
        "from memworker.memory.drafts import metadata_json\n"
        "print(metadata_json({'s': http.HTTPStatus.OK, 'n': [http.HTTPStatus.OK]}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == '{"n": [200], "s": 200}\n', done.stderr


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (http.HTTPStatus.OK, 200),
        (User.ALICE, "alice"),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (np.datetime64("2020-01-01T00:00:00.123456789"), "2020-01-01T00:00:00.123456789"),
        (datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01T00:00:00Z"),
        (UUID(int=1), str(UUID(int=1))),
        (np.array([1, 2]), [1, 2]),
        (2**64 - 1, 2**64 - 1),
        (b"\xff", "/w=="),
    ],
    ids=repr,
)
def test_metadata_of_other_types_come_back_as_they_were(memory, given, kept):
    (added,) = memory.add("x", user_id="u", metadata={"v": given})["results"]
    assert memory.get(added["id"])["metadata"] == {"v": kept}
    memory.update(added["id"], "x again", metadata={"w": {"v": given}})
    assert memory.get(added["id"])["metadata"]["w"] == {"v": kept}
    found = memory.add_batch(["y"], user_id="u", metadata=[{"v": given}])["results"]
    assert memory.get(found[0]["id"])["metadata"] == {"v": kept}


def test_scopes_ids_limits_and_filters_are_what_they_are_underneath(memory):
    for text in ("one", "two", "three"):
        memory.add(text, user_id=User.ALICE, metadata={"n": 7})
    filters = {"user_id": User.ALICE, "n": np.int64(7)}
    assert len(memory.get_all(filters=filters, limit=Limit.TWO)["results"]) == 2
    assert len(memory.get_all(filters={"user_id": "alice"}, limit=np.int32(2))["results"]) == 2
    found = memory.search("one", filters=filters, limit=Limit.TWO, threshold=np.float32(-1))
    assert len(found["results"]) == 2
    assert memory.get(np.str_(found["results"][0]["id"])) is not None
    assert memory.count(filters={"user_id": np.str_("alice")}) == 3
    expiring = memory.add("x", user_id="u", expires_at=np.datetime64("2099-01-01"))
    kept = memory.get(expiring["results"][0]["id"])
    assert kept["expires_at"].startswith("2099-01-01T00:00:00")


def str_of(value):
    return str(value)[:20] if value != 10**5000 else "huge"


@pytest.mark.parametrize(
    "limit", [True, 2.5, "2", float("nan"), 0, -1, 10**30, 10**5000], ids=str_of
)
def test_a_limit_that_is_none_is_said(memory, limit):
    with pytest.raises(UsageError, match="limit"):
        memory.search("x", filters={"user_id": "u"}, limit=limit)
    with pytest.raises(UsageError, match="limit"):
        memory.get_all(filters={"user_id": "u"}, limit=limit)


@pytest.mark.parametrize("threshold", [True, "1", float("nan"), np.float64("inf")])
def test_a_threshold_that_is_none_is_said(memory, threshold):
    with pytest.raises(UsageError, match="threshold"):
        memory.search("x", filters={"user_id": "u"}, threshold=threshold)


def test_a_bad_value_names_its_field(memory):
    with pytest.raises(UsageError, match=r"'a\[1\].b' is nan"):
        memory.add("x", user_id="u", metadata={"a": [0, {"b": float("nan")}]})
