"""The Hugging Face Hub: one reachability probe a run, what a repository has, downloads."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from memworker import interpreters
from memworker.models.spec import HubRepo, ModelFile

_PROBE_TIMEOUT_S = 5.0
_LIST_TIMEOUT_S = 120.0
# Of the hub's client, for a connection that a firewall lets begin and not go on.
_PATIENCE = {"HF_HUB_ETAG_TIMEOUT": "5"}


class HubFailed(Exception):
    """The hub could not deliver a file."""


def unreachable() -> str:
    """Return why the hub cannot be used now, or "" when it answers.

    The probe takes at most five seconds and its answer is kept for the run:
    the hub client's own retries would take most of a minute on a closed network.
    """
    return offline_switch() or probe(_endpoint()).told()


def offline_switch() -> str:
    """Say which variable keeps off the network, "" where none does."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return ""
    first, other = "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"
    return f"{first if os.environ.get(first) else other} is set"


def begin_probe() -> None:
    """Begin to ask whether the hub answers, so that it is known when that is wanted."""
    probe(_endpoint())


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def connection(url: str) -> Probe:
    """Return the one probe of this run whether a server can be connected to, begun now if new."""
    return _connection(url)


class Probe:
    """One question to a server; `told` waits for the answer, five seconds at most in all."""

    def __init__(self, endpoint: str, ask: Callable[[str], str]) -> None:
        self._answer = [f"{endpoint} did not answer within {_PROBE_TIMEOUT_S:.0f} s"]
        self._began = time.monotonic()
        # Name resolution has no timeout, so the probe runs beside us and may be left behind.
        self._asking = threading.Thread(
            target=lambda: self._answer.append(ask(endpoint)), daemon=True
        )
        self._asking.start()

    def told(self) -> str:
        """Return why the server cannot be used, "" where it can."""
        left_s = self._began + _PROBE_TIMEOUT_S - time.monotonic()
        self._asking.join(max(0.0, left_s))
        return self._answer[-1]


@functools.cache
def probe(endpoint: str) -> Probe:
    """Return the one probe of this run whether a server answers, begun now if new."""
    return Probe(endpoint, _ask)


@functools.cache
def _connection(url: str) -> Probe:
    return Probe(url, _connect)


def _connect(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    # Through a proxy it is the proxy's to connect; a file needs no connection.
    if not port or not parts.hostname or parts.scheme in urllib.request.getproxies():
        return ""
    try:
        socket.create_connection((parts.hostname, port), _PROBE_TIMEOUT_S).close()
    except OSError as error:
        return f"{parts.hostname} is not reachable ({error})"
    return ""


def _ask(endpoint: str) -> str:
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        # A mirror need not serve its root; a gateway that answers for it is another matter.
        return "" if error.code in (401, 404, 405) else f"{endpoint} answered {error.code}"
    except (OSError, ValueError) as error:
        return f"{endpoint} is not reachable ({getattr(error, 'reason', error)})"


def listing(repo: str) -> list[str]:
    """Return the paths of a repository's files. Raises HubFailed."""
    try:
        said = interpreters.output(
            interpreters.command(_LIST, repo), timeout_s=_LIST_TIMEOUT_S, **_PATIENCE
        )
    except interpreters.Failed as failure:
        raise HubFailed(str(failure)) from failure
    answer = json.loads(said)
    if failed := answer.get("failed"):
        raise HubFailed(failed)
    return list(map(str, answer["files"]))


def fetch_into(hub: HubRepo, files: Sequence[ModelFile], folder: Path) -> None:
    """Download files, and leave nothing else in `folder`. Raises HubFailed."""
    download(hub, files, folder)
    # huggingface_hub keeps its own book-keeping beside what it downloads.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def download(hub: HubRepo, files: Sequence[ModelFile], folder: Path) -> None:
    """Download files into `folder`; an optional one may be missing there.

    In a process of its own: the hub's client reports on what it does unless its
    environment forbids that, and keeps notes, which there lie in `folder` too.
    Raises HubFailed.
    """
    job = {
        "repo": hub.repo,
        "revision": hub.revision,
        "files": [[file.path, file.required] for file in files],
        "folder": str(folder),
    }
    try:
        shown = sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it was closed
        shown = False
    quiet = {} if shown else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    notes = {"HF_XET_CACHE": str(folder / ".cache" / "xet"), "TMPDIR": str(folder)}
    with subprocess.Popen(
        interpreters.command(_DOWNLOAD, json.dumps(job)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if shown else subprocess.DEVNULL,
        text=True,
        env=interpreters.environment(**notes, **quiet, **_PATIENCE),
    ) as child:
        assert child.stdout is not None
        said = child.stdout.read()
    if child.returncode != 0:
        lines = said.strip().splitlines()
        raise HubFailed(lines[-1] if lines else f"its client ended with {child.returncode}")


_REFUSED = """
def refused(repo, error):
    # What 401 and 403 mean, in words.
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    status = getattr(getattr(error, "response", None), "status_code", 0)
    token = get_token()
    given = "the token that is set (HF_TOKEN, or hf auth login) does not open it" if token else (
        "no token is set: set HF_TOKEN")
    if isinstance(error, GatedRepoError):
        return (f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo}, and give a"
            f" token of that account; {given}")
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo}, or it is private; {given}"
    if status in (401, 403):
        return f"access to {repo} was refused ({status}); {given}"
    return ""
"""
_DOWNLOAD = (
    _REFUSED
    + """
import json, os, signal, sys, threading

def leave_with_parent():
    sys.stdin.read()
    os._exit(1)

def download(job):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError)
    repo, revision = job["repo"], job["revision"]
    for path, required in job["files"]:
        try:
            hf_hub_download(repo, path, revision=revision, local_dir=job["folder"])
        except LocalEntryNotFoundError:
            # The client's name for "the network failed"; a missing entry to it as well.
            return f"{repo}/{path}: the connection failed"
        except EntryNotFoundError:
            if required:
                return f"{repo} has no {path} at {revision}"
        except (HfHubHTTPError, OSError, ValueError) as error:
            return refused(repo, error) or f"{repo}/{path}: {' '.join(str(error).split())[:200]}"
    return ""

# Ctrl-C is the parent's to answer, whose end of our input then closes.
signal.signal(signal.SIGINT, signal.SIG_IGN)
threading.Thread(target=leave_with_parent, daemon=True).start()
failure = download(json.loads(sys.argv[1]))
print(failure, flush=True)
os._exit(1 if failure else 0)
"""
)
_LIST = (
    _REFUSED
    + """
import json, sys
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
try:
    told = HfApi().model_info(sys.argv[1], timeout=5)
    print(json.dumps({"files": [file.rfilename for file in told.siblings or []]}))
except Exception as error:  # whatever its client raises is told
    words = refused(sys.argv[1], error) or " ".join(str(error).split())[:200]
    print(json.dumps({"failed": words}))
"""
)
