"""The Hugging Face Hub: one reachability probe a run, local caches, downloads."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from memworker import interpreters
from memworker.models.spec import HubRepo, ModelFile

_PROBE_TIMEOUT_S = 5.0


class HubFailed(Exception):
    """The hub could not deliver a file."""


def unreachable() -> str:
    """Return why the hub cannot be used now, or "" when it answers.

    The probe takes at most five seconds and its answer is kept for the run:
    the hub client's own retries would take most of a minute on a closed network.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _probe(constants.ENDPOINT)


@functools.cache
def _probe(endpoint: str) -> str:
    answer = [f"{endpoint} did not answer within {_PROBE_TIMEOUT_S:.0f} s"]
    # Name resolution has no timeout, so the probe runs beside us and may be left behind.
    probe = threading.Thread(target=lambda: answer.append(_ask(endpoint)), daemon=True)
    probe.start()
    probe.join(_PROBE_TIMEOUT_S)
    return answer[-1]


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


def cached_file(hub: HubRepo, path: str) -> Path | None:
    """Find a file that the hub client, or fastembed with it, has downloaded before."""
    from huggingface_hub import constants, try_to_load_from_cache

    folders = [Path(constants.HF_HUB_CACHE), _fastembed_cache()]
    for cache_dir in filter(_is_own, folders):
        found = try_to_load_from_cache(hub.repo, path, cache_dir=cache_dir, revision=hub.revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _is_own(cache_dir: Path) -> bool:
    """Whether no other user could have put files there: a default is in a shared folder.

    Without a home folder another is "~" in the working directory.
    """
    if not cache_dir.is_absolute():
        return False
    return cache_dir.is_dir() and cache_dir.stat().st_uid == os.getuid()


def _fastembed_cache() -> Path:
    if named := os.environ.get("FASTEMBED_CACHE_PATH"):
        return Path(named)
    # Not `tempfile.gettempdir`, which writes to see where it may, and raises where it may not.
    folder = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")
    return Path(folder) / "fastembed_cache"


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
        env=interpreters.environment(**notes, **quiet),
    ) as child:
        assert child.stdout is not None
        said = child.stdout.read()
    if child.returncode != 0:
        lines = said.strip().splitlines()
        raise HubFailed(lines[-1] if lines else f"its client ended with {child.returncode}")


_DOWNLOAD = """
import json, os, signal, sys, threading

def leave_with_parent():
    sys.stdin.read()
    os._exit(1)

def download(job):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError)
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
        except RepositoryNotFoundError:
            return f"there is no repository {repo}, or it needs a token"
        except (HfHubHTTPError, OSError, ValueError) as error:
            return f"{repo}/{path}: {' '.join(str(error).split())[:200]}"
    return ""

# Ctrl-C is the parent's to answer, whose end of our input then closes.
signal.signal(signal.SIGINT, signal.SIG_IGN)
threading.Thread(target=leave_with_parent, daemon=True).start()
failure = download(json.loads(sys.argv[1]))
print(failure, flush=True)
os._exit(1 if failure else 0)
"""
