"""How every Python that memworker starts is started: on its own path, and silent to the outside.

Python puts the working directory on its path for ``-c``, ``-m`` and a prompt, and a
script's folder for a script. What lies there may bear any name, ``numpy.py`` too, so a
process of ours has neither. Some libraries call home or write notes of their own
wherever they are imported; they are told not to before that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

# Set over whatever the caller's environment says: what SECURITY.md promises is no option.
QUIET = {
    # ONNX Runtime looks up a host, keeps a device id and a queue in the user's cache folder, and
    # truncates `.ses` in the temporary folder, through a link if one is there.
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def command(code: str, *arguments: str) -> list[str]:
    """Return the command line that runs `code`, with `sys.argv[1:]` as `arguments`."""
    return [sys.executable, "-P", "-c", f"{on_our_path()}\n{code}", *arguments]


def module_command(name: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module, as ``-m`` does."""
    run = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return command(run, *arguments)


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment with `QUIET` and `more`, for a child."""
    return os.environ | QUIET | more


def child(code: str, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start a process that runs `code` and answers in lines of text on its standard output.

    In a session of its own: Ctrl-C is for its parent to answer.
    """
    return subprocess.Popen(
        command(code, *arguments),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def without_telemetry() -> None:
    """Keep this process, one of ours, from loading a package that only calls home.

    No setting keeps OpenVINO from it: wherever `openvino_telemetry` is installed beside it,
    importing it writes an id into the home folder and sends an event.
    """
    for name in ("openvino_telemetry",):
        sys.modules[name] = None  # type: ignore[assignment]


class Failed(Exception):
    """A process that was started to do some work did not do it; `stderr` is all that it said."""

    def __init__(self, words: str, stderr: str = "") -> None:
        super().__init__(words)
        self.stderr = stderr


def output(command: list[str], *, timeout_s: float, given: str = "", **settings: str) -> str:
    """Run a command to its end and return what it printed; `given` is its standard input.

    Raises Failed with its last words; OSError where it cannot be started.
    """
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment(**settings),
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"it took more than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise Failed(_last_words(done.returncode, done.stderr), done.stderr)
    return done.stdout


def _last_words(code: int, stderr: str) -> str:
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    if code < 0:
        hint = ", likely out of memory" if code == -signal.SIGKILL else ""
        said.append(f"it was killed by signal {-code}{hint}")
    return (said or [f"it ended with exit status {code}"])[-1][:300]


def on_our_path() -> str:
    """Return the line of code that gives an interpreter `our_path`."""
    # ascii(): a name that is not UTF-8 is a lone surrogate, which no source code may hold.
    return f"import sys; sys.path[:] = {our_path()!a}"


def our_path() -> list[str]:
    """Return `sys.path` without what Python put there unasked.

    What PYTHONPATH names was asked for, and where memworker itself lies its
    dependencies may lie too: both stay.
    """
    unasked = _unasked_folders() - _asked_folders()
    home = os.path.dirname(os.path.dirname(_full(__file__)))
    stays = [(entry, _full(entry)) for entry in sys.path]
    return [entry or full for entry, full in stays if full == home or full not in unasked]


def _unasked_folders() -> set[str]:
    """Name the working directory, now and at the beginning, and the script's folder."""
    folders = {_full(""), _BEGAN_IN}
    if script := getattr(sys.modules.get("__main__"), "__file__", None):
        path = os.path.join(_BEGAN_IN, script)
        # A script that is a link stands for the folder that the link points into.
        folders |= {os.path.dirname(path), os.path.dirname(os.path.realpath(path))}
    return folders


def _asked_folders() -> set[str]:
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {_full(entry) for entry in named if entry}


def _full(entry: str) -> str:
    try:
        return os.path.normpath(os.path.join(os.getcwd(), entry))
    except OSError:
        # The working directory was removed; nothing can be imported from it.
        return os.path.normpath(entry)


_BEGAN_IN = _full("")
