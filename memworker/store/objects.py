"""Object storage by a few calls: what lies there as paths do, and writes that have a condition.

LanceDB reads and writes its own files there. This is for the rest: the lock of a table
(bucketlock.py), and looking at which files there are. `obstore` stands on the same library
as LanceDB and takes the same options.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from memworker.errors import StoreError, StoreUnwritable, UsageError
from memworker.paths import Bucket

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# Of how requests are sent; the other options say where to, and as whom.
_CLIENT = {
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "default_content_type",
    "http1_only",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_url",
    "timeout",
    "user_agent",
}
# Those that LanceDB reads for itself, and no object store does.
_LANCE = ("new_table_", "client_", "download_", "lance_", "object_store_")
_SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
# A server that is not there: LanceDB tries for three minutes, which is its own affair.
_RETRIES = {"max_retries": 8, "retry_timeout": timedelta(seconds=30)}
# How an error of an object store is shown, in short or with all that is within.
_STORE = re.compile(r'store: \\?"\w+|Generic (S3|GCS|MicrosoftAzure) error')
_ANSWER = re.compile(r"<Code>(\w+)</Code>|status(?: code)?: (\d{3})")
_PROBE = ".memworker/conditional-put"


class NotSwapped(Exception):
    """The object is not any more what a conditional write expected."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was seen: its bytes, the mark of that state, and when it was written."""

    content: bytes
    mark: dict[str, str]
    written: float


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What of an object's, or a folder's, state is asked for by the names that os.stat has."""

    st_size: int
    st_mtime: float
    st_mode: int


@dataclass(frozen=True)
class ObjectPath:
    """An object, or a folder of them, with the few calls of pathlib.Path that are used of it.

    What goes wrong is an OSError, as it is there; a folder is there as long as anything is in it.
    """

    bucket: Bucket
    key: PurePosixPath = field(default_factory=PurePosixPath)
    known: ObjectStat | None = field(default=None, compare=False, repr=False)

    def __truediv__(self, below: str) -> ObjectPath:
        return ObjectPath(self.bucket, self.key / below)

    def __str__(self) -> str:
        return f"{self.bucket.uri}/{self.key}"

    @property
    def _at(self) -> str:
        return "" if self.key == PurePosixPath() else str(self.key)

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def stem(self) -> str:
        return self.key.stem

    def read_bytes(self) -> bytes:
        with _object_errors(self):
            return bytes(_api().get(store_of(self.bucket), self._at).bytes())

    def exists(self) -> bool:
        try:
            self.lstat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return next(iter(self.iterdir()), None) is not None

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield what is in the folder, with what its listing says; nothing if it is not there."""
        with _object_errors(self):
            found = _api().list_with_delimiter(store_of(self.bucket), self._at)
        for each in found["common_prefixes"]:
            folder = ObjectStat(0, 0.0, stat.S_IFDIR)
            yield ObjectPath(self.bucket, PurePosixPath(each), folder)
        for each in found["objects"]:
            yield ObjectPath(self.bucket, PurePosixPath(each["path"]), _stat_of(each))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield what is in the folder and has such a name."""
        return (path for path in self.iterdir() if path.key.match(pattern))

    def stat(self) -> ObjectStat:
        return self.lstat()

    def lstat(self) -> ObjectStat:
        """Return its state, as its folder's listing has said it if it comes from there."""
        if self.known is not None:
            return self.known
        with _object_errors(self):
            return _stat_of(_api().head(store_of(self.bucket), self._at))

    def write_bytes(self, content: bytes) -> None:
        with _object_errors(self):
            _api().put(store_of(self.bucket), self._at, content)

    def unlink(self) -> None:
        with _object_errors(self):
            _api().delete(store_of(self.bucket), self._at)

    def rmdir(self) -> None:
        """Do nothing: a folder ends with the last object in it."""

    def below(self) -> Iterator[ObjectStat]:
        """Yield the state of all objects under this folder, however deep."""
        with _object_errors(self):
            for batch in _api().list(store_of(self.bucket), self._at):
                yield from map(_stat_of, batch)

    def seen(self) -> Seen | None:
        """Return what is there now, or None."""
        try:
            with _object_errors(self):
                got = _api().get(store_of(self.bucket), self._at)
                written = got.meta["last_modified"].timestamp()
                return Seen(bytes(got.bytes()), _mark(got.meta), written)
        except FileNotFoundError:
            return None

    def swap(self, content: bytes, before: Seen | None) -> Seen:
        """Write it if it still is as it was `before` (None: not there). Raises NotSwapped, OSError.

        A request that was carried out and whose answer was lost counts as what it was.
        """
        mode: Any = "create" if before is None else before.mark
        try:
            with _object_errors(self):
                put = _api().put(store_of(self.bucket), self._at, content, mode=mode)
            return Seen(content, _mark(put), 0.0)
        except (NotSwapped, OSError):
            now = self.seen()
            if now is not None and now.content == content:
                return now
            raise


def ensure_conditional(bucket: Bucket) -> None:
    """Raise StoreUnwritable unless the bucket can be written to, and holds to conditions."""
    probe = ObjectPath(bucket) / _PROBE
    try:
        for _ in range(2):
            # The first is refused where an earlier process has asked.
            if _refused(probe, None):
                break
        else:
            raise StoreUnwritable(_no_condition(bucket, "If-None-Match"))
        if bucket.uri.startswith("gs:"):
            return  # its marks are numbers of generations, which have been there from the start
        if not _refused(probe, Seen(b"", {"e_tag": '"0"'}, 0.0)):
            raise StoreUnwritable(_no_condition(bucket, "If-Match"))
    except OSError as error:
        raise StoreUnwritable(
            f"cannot write to {bucket}: {error.strerror or error}; look at the address, the"
            " storage options (--storage-option, storage_options=) and the rights they give"
        ) from error


def _refused(probe: ObjectPath, before: Seen | None) -> bool:
    # Never twice the same bytes: an answer that was lost would look like a refusal.
    try:
        probe.swap(os.urandom(8).hex().encode(), before)
    except NotSwapped:
        return True
    return False


def _no_condition(bucket: Bucket, header: str) -> str:
    return (
        f"the server of {bucket} does not hold to conditions ({header}), so that two writers would"
        " overwrite each other's commits; use one that does, as AWS, Google, Azure, MinIO,"
        " Ceph and SeaweedFS do in their present versions"
    )


def refusal(text: str) -> str | None:
    """Say what a store has answered, out of the words of an error that LanceDB hands on."""
    if not _STORE.search(text):
        return None
    look = "look at the address, the storage options and the rights they give"
    if found := _ANSWER.search(text):
        return f"the store answered {found[1] or found[2]}; {look}"
    if "kind: Connect" in text or "error sending request" in text:
        return f"the store cannot be reached; {look}"
    return None


@lru_cache(maxsize=64)
def store_of(bucket: Bucket) -> ObjectStore:
    """Return the client for a bucket. Raises UsageError for options that it does not know."""
    api = _api()
    options = {k.lower(): v for k, v in bucket.options if not k.lower().startswith(_LANCE)}
    client = _client_of({k: v for k, v in os.environ.items() if k.startswith("AWS_")}) | _client_of(
        options
    )
    config = {k: v for k, v in options.items() if k.removeprefix("aws_") not in _CLIENT}
    try:
        made: ObjectStore = api.store.from_url(
            bucket.uri, config=config, client_options=client, retry_config=_RETRIES
        )
        return made
    except api.exceptions.UnknownConfigurationKeyError as error:
        raise UsageError(f"unknown storage option: {_first_line(error)}") from error
    except (api.exceptions.BaseError, ValueError, TypeError) as error:
        raise UsageError(f"{bucket} cannot be used: {_first_line(error)}") from error


def _client_of(named: Mapping[str, str]) -> dict[str, str | bool]:
    """Return what says how requests are sent, of options or of an environment as LanceDB reads it.

    obstore reads the rest of the environment by itself.
    """
    lowered = {key.lower().removeprefix("aws_"): value for key, value in named.items()}
    return {k: _SWITCHES.get(v.lower(), v) for k, v in lowered.items() if k in _CLIENT}


def _api() -> Any:
    try:
        # Lazy: only who works in a bucket needs it.
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise StoreError(
            "a database in object storage needs the package obstore: pip install 'memworker[cloud]'"
        ) from error
    return obstore


@contextmanager
def _object_errors(path: ObjectPath) -> Iterator[None]:
    """Raise what obstore raises as what the same would be on a disk; NotSwapped where refused."""
    errors = _api().exceptions
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except (errors.PreconditionError, errors.AlreadyExistsError) as error:
        raise NotSwapped(str(path)) from error
    except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, _first_line(error), str(path)) from error
    except errors.BaseError as error:
        raise OSError(errno.EIO, _first_line(error), str(path)) from error


def _mark(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _stat_of(meta: Any) -> ObjectStat:
    return ObjectStat(int(meta["size"]), meta["last_modified"].timestamp(), stat.S_IFREG)


def _first_line(error: BaseException) -> str:
    # Behind it stand the answer's XML and the source of the client.
    return str(error).partition("\n")[0].partition("<?xml")[0].strip().rstrip(":")[:400]
