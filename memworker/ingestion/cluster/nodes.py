"""Ray: joined or started, looked at, and left again."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memworker.errors import UsageError
from memworker.locks import Scratch
from memworker.pool import machine

_MISSING = "--runner ray (runner='ray') needs Ray: pip install 'memworker[ray]'"
# Ray tells its makers of each cluster unless it is told not to.
_SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# An encoder a CPU leaves so much of each for readers.
_SHARE_OF_A_CPU = 0.75
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Nodes:
    """How the nodes of a cluster are used: so many encoders, each with so many CPUs of Ray's."""

    nodes: int
    encoders: int
    cpus: float
    workers: int


@contextmanager
def joined(address: str | None) -> Iterator[Any]:
    """Give Ray: the caller's own, a cluster's at `address`, or one of this machine for the while.

    Raises UsageError where Ray is not installed, or nothing answers at the address.
    """
    with _environment():
        try:
            import ray
            import ray.data  # noqa: F401
        except ImportError as error:
            raise UsageError(f"{_MISSING} ({error})") from error
        if ray.is_initialized():
            yield ray
            return
        with _quiet(), _own(ray, address):
            yield ray


@contextmanager
def _own(ray: Any, address: str | None) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    # Ray's sockets lie below it, and their names have to be short.
    home = Path(tempfile.gettempdir()) / f"mw-ray-{os.getuid()}"
    scratch = None if address else Scratch(home, end_left_by)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if scratch is None:
        how |= {"address": address}
    else:
        cpus = max(2, machine.usable_cores())
        here = {"include_dashboard": False, "num_cpus": cpus, "_temp_dir": str(scratch.path)}
        how |= {"address": "local", **here}
    try:
        try:
            with _unheard():
                ray.init(**how)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            if address is None:
                raise UsageError(f"Ray could not be started on this machine: {error}") from error
            raise UsageError(
                f"no Ray cluster answers at --address {address}: {error}. Start one with"
                " `ray start --head`, or leave out --address to use this machine alone"
            ) from error
        finally:
            _put_back(handlers)
        yield
    finally:
        ray.shutdown()
        _put_back(handlers)
        if scratch is not None:
            scratch.remove()


def end_left_by(folder: Path) -> None:
    """End the programs of a Ray of ours whose driver was killed: those at work in its folder.

    Some last a minute longer than it. Nobody else's end, for the folder's name is random, and no
    running driver holds it. Where the system has no /proc, they are left to end by themselves.
    """
    within = f"{folder}/"
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if place.stat().st_uid == os.getuid() and _is_at_work(place, within):
                os.kill(int(place.name), signal.SIGKILL)


def _is_at_work(process: Path, within: str) -> bool:
    # Ray's agents name no folder on their command lines, and write their logs there.
    if os.fsencode(within) in (process / "cmdline").read_bytes():
        return True
    return any(os.readlink(file).startswith(within) for file in (process / "fd").iterdir())


@contextmanager
def _unheard() -> Iterator[None]:
    """Drop what is said at Ray's start: that it was told to be silent; what fails is raised.

    And LanceDB warns of forks, where a program is run at once.
    """
    screen, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nothing)


def _put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    # Ray sets its own, and the job has to hear its signals.
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except ValueError:
        pass  # only the main thread may, and Ray has not either


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _SILENT}
    os.environ.update(_SILENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray says of its own work off the screen; its files of it stay."""
    said_by: list[Any] = [logging.getLogger("ray"), *_on_screen()]
    told = {each: each.level for each in said_by}
    try:
        for each in told:
            each.setLevel(logging.ERROR)
        yield
    finally:
        for each, level in told.items():
            each.setLevel(level)


def _on_screen() -> list[logging.Handler]:
    handlers = logging.getLogger("ray.data").handlers
    return [each for each in handlers if each.get_name() == "console"]


def usable(ray: Any, workers: int | None, encoders: str = "node") -> Nodes:
    """Say how encoders are laid over the nodes: one a node, or several on larger ones.

    An encoder's actor leaves readers a part of the node's CPUs, for readers that find none
    never start, and the job would wait for ever. Its workers are as many as the node has
    CPUs, as on one machine: reading takes little of them.
    """
    sizes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    sizes = [size for size in sizes if size >= 1]
    if not sizes or sum(sizes) < 2:
        raise UsageError(
            f"the Ray cluster has {sum(sizes)} CPUs, and a job needs two: one to read, one to embed"
        )
    if encoders == "cpu":
        return Nodes(len(sizes), sum(sizes), _SHARE_OF_A_CPU, 1)
    least = max(2, min(sizes)) if max(sizes) > 1 else 1
    cpus = max(1, least - max(1, least // 8))
    actors = sum(max(0, size // least) for size in sizes)
    return Nodes(len(sizes), max(1, actors), cpus, workers or least)
