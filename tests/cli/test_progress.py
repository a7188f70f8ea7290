"""The live line: only where somebody looks, and never in the way."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from memworker.cli import progress
from memworker.cli.progress import shown
from memworker.ingestion import RunningJob
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.report import Counts
from tests import PATIENCE_S


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), io.StringIO()], ids=["none", "closed", "file"])
def test_no_line_is_shown_to_nobody_and_to_those_who_want_none(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with shown(None, quiet=True) as observe:
        assert observe is None
    with shown(None) as observe:
        assert (observe is None) == (stream is None)


class Log(io.StringIO):
    """A log that tells when it was written to."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def write(self, text):
        self.written.set()
        return super().write(text)


def test_a_log_gets_a_whole_line_now_and_then(monkeypatch):
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.01)
    job = RunningJob(Counts(), ReadProgress())
    job.counts.add(read=12_345)
    with shown(None) as observe:
        observe(job)
        assert log.written.wait(PATIENCE_S)
    lines = log.getvalue().splitlines()
    assert lines[0] == "memworker: 12,345 read, 0 of them known"
    assert "\r" not in log.getvalue()


def test_a_log_that_was_closed_ends_no_job(monkeypatch):
    monkeypatch.setattr(sys, "stderr", closed())
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.01)
    with shown(None) as observe:
        observe(RunningJob(Counts(), ReadProgress()))


def test_a_short_job_leaves_no_line_in_a_log(monkeypatch):
    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    with shown(None) as observe:
        observe(RunningJob(Counts(), ReadProgress()))
    assert log.getvalue() == ""
