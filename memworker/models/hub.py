"""The Hugging Face Hub: one reachability probe a run, local caches, downloads."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

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
    # Name resolution obeys no timeout, so the probe runs beside us and may be left behind.
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
    from huggingface_hub import try_to_load_from_cache

    for cache_dir in filter(_is_own, (None, _fastembed_cache())):
        found = try_to_load_from_cache(hub.repo, path, cache_dir=cache_dir, revision=hub.revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _is_own(cache_dir: Path | None) -> bool:
    """Whether no other user could have put files there: its default is in a shared folder."""
    if cache_dir is None or not hasattr(os, "getuid"):
        return True
    return cache_dir.is_dir() and cache_dir.stat().st_uid == os.getuid()


def _fastembed_cache() -> Path:
    default = Path(tempfile.gettempdir()) / "fastembed_cache"
    return Path(os.environ.get("FASTEMBED_CACHE_PATH", default))


def download(hub: HubRepo, file: ModelFile, folder: Path) -> None:
    """Download one file into `folder`; an optional one may be missing there.

    Raises HubFailed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        hf_hub_download(hub.repo, file.path, revision=hub.revision, local_dir=folder)
    except LocalEntryNotFoundError as error:
        # The hub client's name for "the network failed"; a missing entry to it as well.
        raise HubFailed(f"{hub.repo}/{file.path}: the connection failed") from error
    except EntryNotFoundError as error:
        if file.required:
            raise HubFailed(f"{hub.repo} has no {file.path} at {hub.revision}") from error
    except RepositoryNotFoundError as error:
        raise HubFailed(f"there is no repository {hub.repo}, or it needs a token") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise HubFailed(f"{hub.repo}/{file.path}: {str(error)[:200]}") from error
