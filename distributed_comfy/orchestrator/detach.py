"""``run --detach``: the same run again in a session of its own, which says through a file which job it queued."""
from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.errors import DistributedComfyError, RemoteError, RunInterrupted, from_wire
from distributed_comfy.log_lines import plain
from distributed_comfy.private_file import append_privately, make_private_folder
from distributed_comfy.settings import Settings, child_environment

_POLL_S = 0.05
_STOP_S = 30.0
_LOGS_KEPT_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Detached:
    """A run in the background."""

    job_id: str
    pid: int
    log_file: Path


def start_detached(settings: Settings, arguments: Sequence[str], stop: threading.Event) -> Detached:
    """Start ``distributed-comfy run`` in the background and wait until its job is queued.

    Args:
        settings: for its log and environment.
        arguments: of the command.
        stop: ends it again while it has not queued anything yet.
    Raises:
        DistributedComfyError: whatever kept it from queueing the job.
        RunInterrupted: ``stop`` was set.
    """
    log_file = _new_log(settings)
    announcement = log_file.with_suffix(".json")
    process = _start(settings, ["run", *arguments, "--announce", str(announcement)], log_file)
    try:
        return Detached(_wait_announced(process, announcement, log_file, stop), process.pid, log_file)
    finally:
        announcement.unlink(missing_ok=True)


def attach_detached(settings: Settings, job_id: str, out: Path) -> Detached:
    """Start ``distributed-comfy jobs attach`` in the background; what keeps it from collecting the job is in its log alone.

    Args:
        settings: for its log and environment.
        job_id: that nobody collects.
        out: folder for its files.
    """
    log_file = _new_log(settings)
    process = _start(settings, ["jobs", "attach", job_id, "--out", str(out)], log_file)
    threading.Thread(target=process.wait, name=f"attach-{job_id}", daemon=True).start()  # who has ended is not to stay a zombie
    return Detached(job_id, process.pid, log_file)


def announce(path: Path, job_id: str) -> None:
    """Called in the background: the job is queued."""
    _write(path, {"job": job_id})


def announce_failure(path: Path, error: DistributedComfyError) -> None:
    """Called in the background: nothing was queued."""
    _write(path, {"error": error.to_wire()})


def _new_log(settings: Settings) -> Path:
    folder = settings.runtime_folder / "detached"
    make_private_folder(folder)
    _remove_old_logs(folder)
    return folder / f"{secrets.token_hex(6)}.log"


def _start(settings: Settings, arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "distributed_comfy", *arguments]
    with append_privately(log_file) as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_environment(settings), start_new_session=True
        )


def _remove_old_logs(folder: Path) -> None:
    """Of the logs that nobody has written to for a month."""
    for path in folder.glob("*.log"):
        with suppress(OSError):  # another command may be at it
            if time.time() - path.stat().st_mtime > _LOGS_KEPT_S:
                path.unlink()


def _write(path: Path, message: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(message, default=str), encoding="utf-8")
    os.replace(partial, path)


def _wait_announced(process: subprocess.Popen[bytes], announcement: Path, log_file: Path, stop: threading.Event) -> str:
    while not announcement.exists():
        if process.poll() is not None and not announcement.exists():
            lines = list(map(plain, log_file.read_text(encoding="utf-8", errors="replace").splitlines()))
            raise RemoteError(original_code="detached_run_ended", details="\n".join([f"status {process.returncode}", *lines[-10:]]))
        if stop.wait(_POLL_S):
            process.terminate()
            process.wait(_STOP_S)
            raise RunInterrupted(when="before the job was queued")
    message = json.loads(announcement.read_text(encoding="utf-8"))
    if "error" in message:
        process.wait(_STOP_S)
        raise from_wire(message["error"])
    return str(message["job"])
