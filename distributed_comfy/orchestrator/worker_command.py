"""Starts ``distributed-comfy worker`` as a child process, finds its logs, and asks it to end; for `run` and for agents."""
from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from distributed_comfy.log_lines import complaint, plain
from distributed_comfy.settings import Settings

WORKER_LOG = "worker.log"
ENGINE_LOG = "engine.log"
GO_AHEAD = b"."
_AFTER_GO_AHEAD = """
import os, sys
if not os.read(0, 1):
    sys.exit(1)
nothing = os.open(os.devnull, os.O_RDONLY)
os.dup2(nothing, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Becomes the worker, with the same process id; without the byte it ends."""
_LOG_LINES = 15
_TAIL_BYTES = 16 * 2**10
_COMPLAINT = "error: "


def worker_folder(settings: Settings, name: str) -> Path:
    """A worker's own folder; holds `WORKER_LOG` and `ENGINE_LOG`."""
    return settings.cache_folder / "workers" / name


def start_worker(name: str, environment: Mapping[str, str], output: int | IO[bytes], *, outlives: bool = False) -> subprocess.Popen[bytes]:
    """Start a worker.

    Args:
        name: under which it registers.
        environment: its settings.
        output: takes what it says.
        outlives: it goes on when this process ends, once it was sent `GO_AHEAD` by its standard input; otherwise it ends when that
            closes, however that comes about.
    Raises:
        OSError: no process can be started.
    """
    command = [sys.executable, "-m", "distributed_comfy", "worker", "--name", name]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _AFTER_GO_AHEAD, *command] if outlives else [*command, "--end-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        **_own_group(),
    )


def _own_group() -> dict[str, Any]:
    """A Ctrl-C in the terminal is for the command alone, which then ends its workers."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def end_signal() -> int:
    """What asks a worker to finish and end; Windows kills by SIGTERM, so there it is Ctrl-Break, which reaches the whole group."""
    return int(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def log_tail(folder: Path) -> list[str]:
    """The last lines of a worker and of its engine."""
    return [line for name in (WORKER_LOG, ENGINE_LOG) for line in map(plain, _last_lines(folder / name))]


def log_size(folder: Path) -> int:
    """How long a worker's log is now, for `last_words`."""
    try:
        return (folder / WORKER_LOG).stat().st_size
    except FileNotFoundError:
        return 0


def last_words(folder: Path, since: int = 0) -> str:
    """Why a worker says it ended: its last complaint, else its last line that tells of an error; empty where there is none.

    Args:
        folder: of the worker.
        since: `log_size` when it was started; what was there before, an earlier life has said.
    """
    lines = [line for line in _last_lines(folder / WORKER_LOG, since) if line.strip()]
    complaints = [line for line in map(plain, lines) if line.startswith(_COMPLAINT)]
    return complaints[-1].removeprefix(_COMPLAINT) if complaints else complaint(lines)


def _last_lines(path: Path, since: int = 0) -> list[str]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(since if since <= size else 0, size - _TAIL_BYTES))  # a shorter one was begun anew since
            return file.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
    except FileNotFoundError:
        return []
