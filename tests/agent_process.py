"""The agent as a user has it: ``distributed-comfy up`` in a process of its own, and its host as other commands see it."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from distributed_comfy.settings import read_settings
from distributed_comfy.state.records import HostRecord, HostWorker
from tasks.cluster import Cluster, open_cluster
from tests.command_line import CommandLine, as_a_shell_shows_it, until

HOST = "pc1"


class AgentProcess:
    """Starts and ends ``up`` in a folder of its own; `host` asks the table.

    Args:
        line: commands of this test.
        redis_url: state server.
        blob_url: blob server.
    """

    def __init__(self, line: CommandLine, redis_url: str, blob_url: str) -> None:
        self.line = line
        self.file = line.folder / "workers.json"
        self.log = line.folder / "up.log"
        lease = {"DC_LEASE_TTL_S": "3", "DC_RENEW_INTERVAL_S": "1"}
        line.environment.update(DC_WORKERS_FILE=str(self.file), DC_HOST=HOST, DC_ENGINE="builtin", **lease)
        self.cluster: Cluster = open_cluster(read_settings(lease_ttl_s=3.0), redis_url, blob_url)
        self._started: list[subprocess.Popen[bytes]] = []

    # -- the process -----------------------------------------------------------------------------------------------------
    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start ``up``."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed_comfy", "up", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.line.folder,
                env={**self.line.environment, **environment}, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def said(self) -> str:
        """What all agents of this test said."""
        return self.log.read_text(errors="replace")

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGINT, timeout_s: float = 30.0) -> int:
        """Ctrl-C, as a terminal sends it: to the whole foreground group; its exit status."""
        os.killpg(process.pid, number)
        return as_a_shell_shows_it(process.wait(timeout_s))

    def close(self) -> None:
        """Kill what a failed test has left."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.cluster.close()

    # -- the host --------------------------------------------------------------------------------------------------------
    def write(self, **configuration: Any) -> None:
        """Write workers.json before the agent starts."""
        self.file.write_text(json.dumps(configuration))

    def written(self) -> dict[str, Any]:
        """What is in workers.json."""
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def host(self) -> HostRecord | None:
        """The agent's record."""
        return self.cluster.hosts.host(HOST)

    def worker(self, name: str) -> HostWorker | None:
        """One worker as the agent tells it."""
        host = self.host()
        return next((worker for worker in host.workers if worker.name == name), None) if host else None

    def wait(self, name: str, phase: str, also: Callable[[HostWorker], Any] = bool, timeout_s: float = 60.0) -> HostWorker:
        """The worker, once it is in a phase."""
        deadline = time.monotonic() + timeout_s
        while not ((worker := self.worker(name)) is not None and worker.phase == phase and also(worker)):
            assert time.monotonic() < deadline, f"{name} is {worker}, not {phase}:\n{self.said()[-4000:]}"
            time.sleep(0.05)
        return worker


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def engine_pid(worker_pid: int) -> int:
    """The engine process of a worker."""
    children: list[psutil.Process] = until(lambda: psutil.Process(worker_pid).children())
    return int(children[0].pid)
