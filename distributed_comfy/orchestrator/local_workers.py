"""Workers that a command brings up for itself: one process each, ended with it, also when it is killed."""
from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from distributed_comfy.errors import EngineStartFailed
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import child_environment
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_POLL_S = 0.05
_STOP_S = 20.0
_LOG_LINES = 15


@dataclass(frozen=True)
class LocalWorker:
    """A worker process of ours."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path


@dataclass(frozen=True)
class WorkerOptions:
    """What all workers of one command have in common."""

    engine: str = ""
    """``comfyui``, ``builtin`` or empty for the worker's own choice."""
    comfyui_path: Path | None = None
    devices: Sequence[str] = ()
    """Devices in turn; empty: the worker's own choice."""
    start_timeout_s: float = 300.0


class LocalWorkers:
    """A context: N workers, ready when it is entered, gone when it is left."""

    def __init__(self, cluster: Cluster, servers: Servers, count: int, options: WorkerOptions) -> None:
        self._cluster = cluster
        self._servers = servers
        self._count = count
        self._options = options
        self.workers: list[LocalWorker] = []

    def __enter__(self) -> LocalWorkers:
        try:
            for number in range(self._count):
                self.workers.append(self._start(number))
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
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
        self.workers = []

    def _start(self, number: int) -> LocalWorker:
        settings = self._cluster.settings
        name = f"{settings.host_name}-own-{os.getpid()}-{number}"
        folder = settings.cache_folder / "workers" / name
        folder.mkdir(parents=True, exist_ok=True)
        log_file = folder / "worker.log"
        command = [sys.executable, "-m", "distributed_comfy.cli.main", "worker", "--name", name, "--end-with-stdin"]
        with log_file.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(number),
                start_new_session=True,  # Ctrl-C is for the master, which ends its workers itself
            )
        return LocalWorker(name, process, log_file)

    def _environment(self, number: int) -> dict[str, str]:
        settings, options = self._cluster.settings, self._options
        threads = settings.threads or max(1, (os.cpu_count() or 1) // self._count)
        environment = {
            "DC_REDIS_URL": self._servers.redis_url,
            "DC_BLOB_URL": self._servers.blob_url,
            "DC_THREADS": str(threads),
            "DC_KEY_PREFIX": settings.key_prefix,
        }
        if options.engine:
            environment["DC_ENGINE"] = options.engine
        if options.comfyui_path:
            environment["COMFYUI_PATH"] = str(options.comfyui_path)
        if options.devices:
            environment["DC_DEVICE"] = options.devices[number % len(options.devices)]
        return child_environment(environment)

    def _wait_ready(self) -> None:
        """
        Raises:
            EngineStartFailed: a worker ended, or is not ready in time; with the end of its log.
        """
        waiting = {worker.name: worker for worker in self.workers}
        deadline = time.monotonic() + self._options.start_timeout_s
        while waiting:
            for state in self._cluster.workers.workers():
                if state.state != "lost":
                    waiting.pop(state.facts.name, None)
            for worker in waiting.values():
                if worker.process.poll() is not None or time.monotonic() > deadline:
                    what = "ended" if worker.process.poll() is not None else f"is not ready after {self._options.start_timeout_s:.0f} s"
                    raise EngineStartFailed(reason=f"worker {worker.name} {what}:\n" + "\n".join(_log_tail(worker.log_file)))
            time.sleep(_POLL_S)


@contextmanager
def local_workers(cluster: Cluster, servers: Servers, count: int, options: WorkerOptions) -> Iterator[Sequence[LocalWorker]]:
    """``count`` workers of this command's own; none for 0."""
    if count == 0:
        yield ()
        return
    with LocalWorkers(cluster, servers, count, options) as own:
        yield own.workers


def _log_tail(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    engine_log = path.with_name("engine.log")
    if engine_log.exists():
        lines += engine_log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return lines[-2 * _LOG_LINES :]
