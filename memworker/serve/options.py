"""What a server is told: where it listens, whom it answers, and its limits."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field

from memworker.errors import UsageError
from memworker.paths import PathGiven, used_path

KEY_VARIABLE = "MEMWORKER_API_KEY"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_FEWEST_KEY_CHARACTERS = 16
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@]+")
_HOST_NAME = re.compile(r"[^\s/:@\[\]]+|\[[0-9a-fA-F:.]+\]|\*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where and for whom a server runs.

    `names` are what clients may call the model by (none: the model's own name);
    `allowed_hosts` are accepted in the Host header beside loopback's names and
    `host` itself. `truncate` takes texts over the model's tokens cut, as far as the
    model sees them, where otherwise they are an error. `port` 0 takes a free one.
    A request's `max_tokens` are those of all its inputs together; it must arrive
    within `request_timeout_s`, and stands in line for `max_wait_s` at most (0: is refused
    where it would have to). A stop waits `drain_s` for what is in flight. `key_file` is
    where `key` came from, read again at SIGHUP. `uds` is a socket's path, listened on
    instead of an address. Pages of `cors_origins` may ask. `access_log` is a file, or "-"
    for stderr; `compress` packs replies for clients that take them so.

    Raises UsageError for a number out of range, and for no key off loopback.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    truncate: bool = False
    max_inputs: int = 2048
    max_body_bytes: int = 8 << 20
    max_tokens: int = 300_000
    request_timeout_s: float = 30.0
    drain_s: float = 20.0
    max_wait_s: float = 300.0
    accept_token_ids: bool = False
    uds: PathGiven | None = None
    cors_origins: tuple[str, ...] = ()
    access_log: PathGiven | None = None
    compress: bool = True
    key_file: PathGiven | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UsageError(f"port must be 0 to 65535, not {self.port}")
        for name in ("max_inputs", "max_body_bytes", "max_tokens", "request_timeout_s", "drain_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not 0 <= self.max_wait_s < math.inf:
            raise UsageError(f"max_wait_s must be 0 or more, not {self.max_wait_s}")
        for name in self.allowed_hosts:
            _check_name(name)
        for origin in self.cors_origins:
            _check_origin(origin)
        if self.key is not None:
            check_key(self.key)
        elif self.uds is None and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines, so the server wants a key: put"
                f" it into the environment variable {KEY_VARIABLE} or a file (--api-key-file)."
            )

    @property
    def accepted_hosts(self) -> frozenset[str]:
        """Names, without port and in lower case, that a Host header may carry."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, own, *self.allowed_hosts))


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: whatever it resolves to today may change


def read_key(file: PathGiven) -> str:
    """Read the key from a file of one line; UsageError when it cannot be had from there."""
    path = used_path(file, "the key file")
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise UsageError(f"no key could be read from {path}: {reason}.") from error
    # Who names a file wants a key: an empty one must not open the server to all.
    if not key:
        raise UsageError(f"no key could be read from {path}: it is empty.")
    return key


def _check_name(name: str) -> None:
    if not _HOST_NAME.fullmatch(name):
        raise UsageError(
            f"an allowed host is a name or an address, without scheme and port, not {name!r};"
            " an IPv6 address goes in brackets"
        )


def _check_origin(origin: str) -> None:
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise UsageError(
            f"a CORS origin is a scheme and a host, as https://app.example.com or"
            f" http://localhost:3000, or *; not {origin!r}"
        )


def check_key(key: str) -> None:
    """Refuse a key that is too short, or that no header can carry; raises UsageError."""
    if len(key) < _FEWEST_KEY_CHARACTERS or not all("!" <= c <= "~" for c in key):
        raise UsageError(
            f"the key must have at least {_FEWEST_KEY_CHARACTERS} characters, all of them visible"
            " ASCII without spaces. One can be made with: openssl rand -hex 32"
        )
