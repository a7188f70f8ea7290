"""A server from its first listening to its last answer.

::

    listen ─► starting ─► ready ─► draining ─► closed
              pool in a            no new work; what is in flight
              thread               ends, within `drain_s`
                             └──► failed: the pool is no more ─► closed

The first signal drains, the second ends the process at once, and so does a drain
without an end in sight. SIGHUP drains where the terminal was closed; else it reloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from memworker.errors import PoolError, UsageError
from memworker.paths import used_path
from memworker.pool import Background, EmbeddingPool, peak_flops
from memworker.serve.app import create_app
from memworker.serve.connection import patient
from memworker.serve.options import ServeOptions
from memworker.serve.service import Service, State

_CLOSE_S = 2
_BACKLOG = 2048
_SOCKET_MODE = 0o660
# Beyond the drain: time for the last answers, and for the workers to end.
_LAST_RESORT_S = 20.0
_SWITCH_S = 0.0005
# Longer than clients keep an idle connection: who closes first must not be who is asked.
_KEEP_ALIVE_S = 120
# GNU timeout signals its child and then its group, which is twice within a millisecond.
_ECHO_S = 0.1
_log = logging.getLogger("memworker.serve")


def run(
    options: ServeOptions,
    make_pool: Callable[[], EmbeddingPool],
    *,
    on_ready: Callable[[Service, str], None],
    on_listening: Callable[[str], None] | None = None,
    names: tuple[str, ...] = (),
) -> int:
    """Serve until a signal ends it; returns the exit status that is due to it.

    That is 0 where SIGTERM ended it and every request was answered, else 128 and the
    signal's number.

    `make_pool` is called, and its pool started, in a thread while the server answers
    already; what that raises ends the server and is raised here, as is what ends the pool
    later.
    `on_listening` and `on_ready` are called with the server's address. Takes the
    process's signals: for the main thread alone. Raises UsageError where the address
    cannot be listened on.
    """
    listener = listen(options)
    if on_listening is not None:
        on_listening(address(listener))
    server = Server(options, listener)
    # The pool's thread has little to do, but a worker waits for it: let it have its turn soon.
    sys.setswitchinterval(_SWITCH_S)
    factory = server.config.get_loop_factory()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(server.serve_pool(make_pool, on_ready, names))
    finally:
        server.forget_last_resort()


def listen(options: ServeOptions) -> socket.socket:
    """Open the listening socket; UsageError where that fails."""
    if options.uds is not None:
        return _listen_on_file(used_path(options.uds, "the socket"))
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        socket.getaddrinfo(options.host or None, options.port, family, socket.SOCK_STREAM)
        return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {options.host} port {options.port}: {_reason(error)}."
            " Take another with --port, or 0 for any that is free."
        ) from error


def _listen_on_file(path: Path) -> socket.socket:
    """Listen on a socket that is a file, for its owner and group; a dead server's is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on the socket {path}: {error.strerror or error}. Take another with"
            " --uds."
        ) from error
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        return asking.connect_ex(str(path)) == 0


def _reason(error: OSError) -> str:
    # Its number is not one of the system's errors.
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}, so the host is no name and no address"
    return os.strerror(error.errno or 0)


def address(listener: socket.socket) -> str:
    """Give the URL that a listening socket is reached at."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn with a pool behind it, and with signals that drain."""

    def __init__(self, options: ServeOptions, listener: socket.socket) -> None:
        self.service = Service(options, self._on_failure)
        self._failure: BaseException | None = None
        self._listener = listener
        self._signal = 0
        self._signal_at = 0.0
        self._gave_up = False
        on_file = listener.family == socket.AF_UNIX
        self._socket_file = Path(listener.getsockname()) if on_file else None
        self._terminal = _has_terminal()
        self._last_resort: threading.Timer | None = None
        super().__init__(
            uvicorn.Config(
                create_app(self.service),
                http=patient(options.request_timeout_s),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                # What it would say more is what anybody can make it say, or an exception's text.
                log_level="critical",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_CLOSE_S,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )

    async def serve_pool(
        self,
        make_pool: Callable[[], EmbeddingPool],
        on_ready: Callable[[Service, str], None],
        names: tuple[str, ...],
    ) -> int:
        """Serve until a signal or a failed start; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._take_signals(loop)

        # A daemon, for a download cannot be interrupted and must not hold up the end.
        opening = Background(lambda: _started(make_pool()), daemon=True)
        beginning = loop.create_task(self._begin(opening, on_ready, names))
        try:
            await self.serve(sockets=[self._listener])
        finally:
            if self._socket_file is not None:
                self._socket_file.unlink(missing_ok=True)
            self._listener.close()
            self.service.close()
            beginning.cancel()
            # Not on the loop, which must hear a second signal should this take long.
            await loop.run_in_executor(None, opening.then, lambda pool: pool.close())
        if self._failure is not None:
            raise self._failure
        whole = self._signal == signal.SIGTERM and not self._gave_up
        return 0 if whole else 128 + self._signal

    async def _begin(
        self,
        opening: Background[EmbeddingPool],
        on_ready: Callable[[Service, str], None],
        names: tuple[str, ...],
    ) -> None:
        try:
            pool = await opening.wait()
        except Exception as error:
            self._failure = error
            self._stop()
        else:
            self.service.open(pool, names=names)
            on_ready(self.service, address(self._listener))

    def forget_last_resort(self) -> None:
        """Let the process live on: everything is closed."""
        if self._last_resort is not None:
            self._last_resort.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_take_signals`: uvicorn would raise them again at the end."""
        yield

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and not (self._terminal and not _has_terminal()):
            self._reload()
            return
        now = time.monotonic()
        if self._signal:
            if now - self._signal_at > _ECHO_S:
                os._exit(128 + number)
            return
        self._signal, self._signal_at = number, now
        patience_s = self.service.options.drain_s + _LAST_RESORT_S
        last_resort = threading.Timer(patience_s, os._exit, (128 + number,))
        last_resort.daemon = True
        last_resort.start()
        self._last_resort = last_resort
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    def _reload(self) -> None:
        """Answer SIGHUP, where it does not tell that the terminal is gone."""
        try:
            self.service.reload()
        except UsageError as error:
            _log.error("nothing was reloaded: %s", error)
        else:
            _log.warning("reloaded: the key's file was read, and the access log begun, again")

    async def _drain(self) -> None:
        self.service.state = State.DRAINING
        try:
            async with asyncio.timeout(self.service.options.drain_s):
                await self.service.idle()
        except TimeoutError:
            self._gave_up = True
            self.service.give_up()
            await self.service.idle()
        self._stop()

    def _on_failure(self, error: PoolError) -> None:
        """Exit, so that a service manager starts the server again: a pool cannot be reopened."""
        self._failure = error
        self._stop()

    def _stop(self) -> None:
        self.should_exit = True


def _has_terminal() -> bool:
    """Tell whether this process has a terminal; when it is closed, that is gone."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _started(pool: EmbeddingPool) -> EmbeddingPool:
    """Start a pool; before there is work, measure what the machine can do, for the live page."""
    made = pool.identity
    peak_flops.know_for(made.flops_per_token, made.precision)
    return pool.start()
