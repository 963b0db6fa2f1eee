"""A worker's process as its agent holds it: a child of the agent, or one that has outlived the agent before and is taken back."""
from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from distributed_comfy.agent.rotated_log import RotatedLog, pump
from distributed_comfy.engine.launch import status_in_words
from distributed_comfy.errors import InviteRefused
from distributed_comfy.orchestrator.worker_command import WORKER_LOG, end_signal, start_worker

log = logging.getLogger(__name__)

_PS_TIMEOUT_S = 10.0
_LAST_LINES_S = 2.0
BAD_INPUT = 2
"""Exit status of a worker that cannot work as it is configured, so that another start would not help."""
_HOPELESS = (BAD_INPUT, InviteRefused.exit_code)


class WorkerProcess(Protocol):
    """What supervision needs of a process."""

    pid: int
    outlives: bool
    """Whether it goes on when the agent ends."""

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs."""

    @property
    def hopeless(self) -> bool:
        """Whether it ended because its configuration is wrong, or because the cluster has shut its host out."""

    def ask_to_end(self) -> None:
        """Let it finish its item and end; a second time at once."""

    def kill(self) -> None:
        """End it; its engine ends with it."""


class OwnedProcess:
    """A child that ends with the agent; what it says goes through a pipe into rotated logs.

    Args:
        name: of the worker.
        environment: its settings.
        folder: its own.
    Raises:
        OSError: it cannot be started.
    """

    outlives = False

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path) -> None:
        self._log = RotatedLog(folder / WORKER_LOG)
        self._process = start_worker(name, environment, subprocess.PIPE)
        assert self._process.stdout is not None
        self._pump: threading.Thread = pump(self._process.stdout, self._log, name)
        self.pid = self._process.pid

    def ended(self) -> str | None:
        """See `WorkerProcess`; its last lines are in the log then."""
        status = self._process.poll()
        if status is None:
            return None
        self._pump.join(_LAST_LINES_S)
        if self._process.stdin:
            self._process.stdin.close()
        return status_in_words(status)

    @property
    def hopeless(self) -> bool:
        """See `WorkerProcess`."""
        return self._process.returncode in _HOPELESS

    def ask_to_end(self) -> None:
        """See `WorkerProcess`."""
        self._process.send_signal(end_signal())

    def kill(self) -> None:
        """See `WorkerProcess`."""
        self._process.kill()


@dataclass(frozen=True)
class Survivor:
    """What the next agent must know to take a worker back."""

    name: str
    pid: int
    started: str
    """See `process_start`: another process may have the pid by then."""
    cluster: str
    """Where it works; not in another cluster's list."""
    cores: tuple[int, ...] = ()
    threads: int = 0


class SurvivingProcess:
    """A process that goes on when the agent ends; it writes its log itself, and stands in a file of the runtime folder."""

    outlives = True

    def __init__(self, survivor: Survivor, file: Path, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = survivor.pid
        self.survivor = survivor
        self._file = file
        self._child = child

    @classmethod
    def start(cls, survivor: Survivor, environment: Mapping[str, str], folder: Path, file: Path) -> SurvivingProcess:
        """Start one.

        Args:
            survivor: its pid and start are filled in here.
            environment: its settings.
            folder: its own.
            file: where it is written down.
        Raises:
            OSError: it cannot be started, or not be written down.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / WORKER_LOG).open("ab") as output:
            child = start_worker(survivor.name, environment, output, outlives=True)
        known = Survivor(**{**asdict(survivor), "pid": child.pid, "started": process_start(child.pid) or ""})
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(asdict(known)), encoding="utf-8")
        os.replace(partial, file)
        return cls(known, file, child)

    @classmethod
    def find(cls, file: Path) -> SurvivingProcess | None:
        """The process that is written down in ``file``, if it still runs; a file of one that is gone is removed."""
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            survivor = Survivor(**{**plain, "cores": tuple(plain["cores"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        found = cls(survivor, file)
        return None if found.ended() else found

    def ended(self) -> str | None:
        """See `WorkerProcess`."""
        if self._child is not None:
            status = self._child.poll()
            words = None if status is None else status_in_words(status)
        else:
            alive = bool(self.survivor.started) and process_start(self.pid) == self.survivor.started
            words = None if alive else "a status that nobody knows (it was started by an agent before this one)"
        if words:
            self._file.unlink(missing_ok=True)
        return words

    @property
    def hopeless(self) -> bool:
        """See `WorkerProcess`."""
        return self._child is not None and self._child.returncode in _HOPELESS

    def ask_to_end(self) -> None:
        """See `WorkerProcess`."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """See `WorkerProcess`."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.ended() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def can_outlive() -> bool:
    """Whether workers can go on without their agent here: on Windows nobody could say that a process is still the same one."""
    return sys.platform != "win32"


def process_start(pid: int) -> str | None:
    """When a process began, in whatever way this system tells it; None where there is no such process."""
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] == "Z" else fields[19]
    try:
        done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=_PS_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("cannot ask for process %d: %s", pid, error)
        return None
    return done.stdout.strip() or None
