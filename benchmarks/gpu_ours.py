"""Our side of gpu.py: real workers of one GPU on private Redis servers, and jobs that are run and collected as the command line does."""
from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_place import Place, Seat
from benchmarks.gpu_trace import Trace
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.cpu_list import format_cpus
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.local_workers import LocalWorker, WorkerOptions, local_workers
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.orchestrator.run import RunOptions, SilentReporter, run_on
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.submit import QueuedJob, SubmitOptions, read_prompt, submit_prompt
from distributed_comfy.settings import read_settings
from distributed_comfy.state.records import WorkerState
from tasks.cluster import Cluster, open_cluster

POLL_S = 0.001
IDLE_TIMEOUT_S = 60.0


class Ours:
    """One worker and the cluster it belongs to; `open_ours` starts it."""

    def __init__(self, place: Place, cluster: Cluster, worker: LocalWorker) -> None:
        self.place = place
        self.cluster = cluster
        self.name = worker.name
        self._worker = worker
        self.trace = self._find_trace()
        self.engine_pid = int(self.trace.path.name)

    def _find_trace(self) -> Trace:
        """That of the engine, which is a child of the worker."""
        pids = [child.pid for child in psutil.Process(self._worker.process.pid).children(recursive=True)]
        found = [path for pid in pids if (path := self.place.base / "trace" / str(pid)).exists()]
        if len(found) != 1:
            raise BenchmarkFailed(f"worker {self.name} has {len(found)} engines with a trace; its processes are {pids}")
        return Trace(found[0])

    # -- the worker ------------------------------------------------------------------------------------------------------
    def state(self) -> WorkerState:
        """The worker as the table sees it."""
        return next(state for state in self.cluster.workers.workers() if state.facts.name == self.name)

    def wait_idle(self) -> float:
        """Wait until the worker has nothing to do; when that was."""
        give_up = time.monotonic() + IDLE_TIMEOUT_S
        while (state := self.state()).state != "idle":
            if time.monotonic() > give_up:
                raise BenchmarkFailed(f"worker {self.name} is {state.state} for {IDLE_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
        return time.time()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let this worker claim while the context lasts."""
        self.cluster.jobs.drain(self.name, drained=False)
        self.wait_idle()
        try:
            yield
        finally:
            self.cluster.jobs.drain(self.name)

    # -- jobs ------------------------------------------------------------------------------------------------------------
    def run(self, prompt: Prompt, items: int | None = None) -> Delivery:
        """One job from submission to finished files; see `Delivery.error`."""
        asked = SubmitOptions(items=items)
        return run_on(self.cluster, read_prompt(prompt, asked), RunOptions(self._out(), asked), SilentReporter())

    def run_all(self, prompts: Sequence[Prompt]) -> None:
        """A job for each prompt, submitted at the same time; returns when all are delivered."""
        with ThreadPoolExecutor(len(prompts)) as threads:
            for delivery in threads.map(self.run, prompts):
                if delivery.error is not None:
                    raise delivery.error

    @contextmanager
    def queued(self, prompt: Prompt, items: int) -> Iterator[QueuedJob]:
        """A job that somebody owns and nobody collects."""
        asked = SubmitOptions(items=items)
        job = submit_prompt(self.cluster, read_prompt(prompt, asked), asked, threading.Event())
        job_id = job.record.job_id
        with Ownership(self.cluster, job_id, job.owner):
            yield job
        self.cluster.blobs.drop_job(job_id)
        self.cluster.jobs.settle(job_id)

    def moved_bytes(self) -> int:
        """What has gone in and out of both servers so far."""
        servers: list[Any] = [self.cluster.client.info("stats"), self.cluster.blob_client.info("stats")]
        return sum(int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"]) for stats in servers)

    def _out(self) -> Path:
        folder = self.place.folder / "out" / f"{time.time_ns()}"
        folder.mkdir(parents=True)
        return folder

    def keep_logs(self) -> None:
        """The worker's folder vanishes with it."""
        for name in ("worker", "engine"):
            log = self._worker.folder / f"{name}.log"
            if log.exists():
                shutil.copy(log, self.place.folder / f"{self.name}.{name}.log")


@contextmanager
def open_ours(place: Place, servers: Servers, name: str, *, slots: int, seat: Seat | None = None, **more: Any) -> Iterator[Ours]:
    """A worker of this command's own, ready and drained, as ``distributed-comfy run --workers 1`` brings it up.

    Args:
        place: folders and interpreter.
        servers: of the cluster.
        name: of the worker.
        slots: DC_SLOTS.
        seat: its device, cores and threads; without it those of the place.
        more: settings.
    """
    seat = seat or Seat(name, place.device, (), place.threads)
    settings = read_settings(
        redis_url=servers.redis_url, blob_url=servers.blob_url, cache_dir=place.folder / "cache", comfyui_path=place.comfyui,
        comfyui_python=place.python, comfyui_base_directory=place.base, threads=seat.threads, cores=format_cpus(seat.cpus),
        slots=slots, **more,
    )  # fmt: skip
    options = WorkerOptions("comfyui", place.comfyui, [seat.device], name)
    with ExitStack() as ending:
        cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
        ending.callback(cluster.close)
        worker = ending.enter_context(local_workers(cluster, servers, 1, options, threading.Event()))[0]
        ours = Ours(place, cluster, worker)
        ending.callback(ours.keep_logs)
        cluster.jobs.drain(ours.name)
        yield ours
