"""Workers that a command brings up for itself: one process each, ended with it, also when it is killed."""
from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from distributed_comfy.engine.locate import choose_devices, choose_engine, default_threads
from distributed_comfy.errors import EngineStartFailed, RunInterrupted
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker_command import WORKER_LOG, log_tail, start_worker, worker_folder
from distributed_comfy.private_file import append_privately
from distributed_comfy.settings import child_environment, read_settings
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_POLL_S = 0.05
_HEARD_S = 0.5
"""By how much a Ctrl-C may be heard later here than in a worker."""
_STOP_S = 20.0


@dataclass(frozen=True)
class LocalWorker:
    """A worker process of ours."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    """Its own; holds ``worker.log`` and ``engine.log``."""


@dataclass(frozen=True)
class WorkerOptions:
    """What all workers of one command have in common."""

    engine: str = ""
    """``comfyui``, ``builtin`` or empty for the worker's own choice."""
    comfyui_path: Path | None = None
    devices: Sequence[str] = ()
    """Devices in turn; empty: every GPU of this host in turn, else the CPU."""
    name: str = ""
    """First part of their names; empty: host and process id."""
    start_timeout_s: float = 600.0


class LocalWorkers:
    """A context: N workers, ready when it is entered, gone when it is left.

    Args:
        cluster: where they register.
        servers: where they connect.
        count: how many.
        options: what they have in common.
        stop: gives up waiting for them.
    """

    def __init__(self, cluster: Cluster, servers: Servers, count: int, options: WorkerOptions, stop: threading.Event) -> None:
        self._settings = cluster.settings
        self._cluster = cluster
        self._servers = servers
        self._count = count
        self._options = options
        self._stop = stop
        self.workers: list[LocalWorker] = []

    def __enter__(self) -> LocalWorkers:
        """
        Raises:
            SettingInvalid: no such ComfyUI or device.
            EngineStartFailed: a worker ended, or is not ready in time; with the end of its log.
            RunInterrupted: ``stop`` was set.
        """
        devices = self._options.devices or self._devices()
        try:
            for number in range(self._count):
                self.workers.append(self._start(number, devices[number % len(devices)]))
            self._wait_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """End all of them: closing their standard input asks for it; what does not follow is killed."""
        for worker in self.workers:
            if worker.process.stdin:
                worker.process.stdin.close()
        deadline = time.monotonic() + _STOP_S
        for worker in self.workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker %s does not end; it is killed", worker.name)
                worker.process.kill()
                worker.process.wait()
            if worker.process.returncode == 0:
                shutil.rmtree(worker.folder, ignore_errors=True)
            else:
                log.info("worker %s ended with status %d; its logs are in %s", worker.name, worker.process.returncode, worker.folder)
        self.workers = []

    def _devices(self) -> list[str]:
        changes = {"engine": self._options.engine or None, "comfyui_path": self._options.comfyui_path}
        settings = read_settings(**{**self._settings.model_dump(exclude_unset=True), **{k: v for k, v in changes.items() if v}})
        return choose_devices(settings, choose_engine(settings), child_environment(settings))

    def _start(self, number: int, device: str) -> LocalWorker:
        prefix = self._options.name or f"{self._settings.host_name}-run{os.getpid()}"
        name = f"{prefix}-{number + 1}"
        folder = worker_folder(self._settings, name)
        (folder / WORKER_LOG).unlink(missing_ok=True)
        with append_privately(folder / WORKER_LOG) as output:
            process = start_worker(name, self._environment(device), output)
        return LocalWorker(name, process, folder)

    def _environment(self, device: str) -> dict[str, str]:
        options = self._options
        return child_environment(
            self._settings,
            redis_url=self._servers.redis_url,
            blob_url=self._servers.blob_url,
            threads=self._settings.threads or default_threads(self._count),
            engine=options.engine or self._settings.engine,
            comfyui_path=options.comfyui_path or self._settings.comfyui_path,
            device=device,
            started_by="run",
        )

    def _wait_ready(self) -> None:
        waiting = {worker.name: worker for worker in self.workers}
        deadline = time.monotonic() + self._options.start_timeout_s
        while waiting:
            for state in self._cluster.workers.workers():
                if state.state != "lost":
                    waiting.pop(state.facts.name, None)
            for worker in waiting.values():
                if worker.process.poll() is not None or time.monotonic() > deadline:
                    if self._stop.wait(_HEARD_S):  # it reaches the whole group of processes
                        break
                    what = "ended" if worker.process.poll() is not None else f"is not ready after {self._options.start_timeout_s:.0f} s"
                    raise EngineStartFailed(reason=f"worker {worker.name} {what}:\n" + "\n".join(log_tail(worker.folder)))
            if self._stop.wait(_POLL_S):
                raise RunInterrupted(when="while the workers started")


@contextmanager
def local_workers(
    cluster: Cluster, servers: Servers, count: int, options: WorkerOptions, stop: threading.Event
) -> Iterator[Sequence[LocalWorker]]:
    """``count`` workers of this command's own; none for 0."""
    if count == 0:
        yield ()
        return
    with LocalWorkers(cluster, servers, count, options, stop) as own:
        yield own.workers
