"""What benchmarks run on: private servers, real workers that can be drained and killed, and jobs that are watched in Redis' time."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.worker import ROOT
from distributed_comfy.messages import ItemResult, Prompt
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.orchestrator.submit import QueuedJob, SubmitOptions, read_prompt, submit_prompt
from distributed_comfy.settings import read_settings
from distributed_comfy.state.keys import Keys
from tasks.cluster import Cluster, open_cluster

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.02


class BenchmarkFailed(Exception):
    """A benchmark could not be run; there is no number."""


@dataclass(frozen=True)
class Worker:
    """A worker process of ours."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def pid(self) -> int:
        """Of the Celery consumer."""
        return self.process.pid

    def kill(self) -> float:
        """SIGKILL the consumer; when."""
        now = time.time()
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        return now


class Rig:
    """Servers, connections and workers of one benchmark; `open_rig` makes it.

    Args:
        cluster: open connections.
        folder: temporary.
        quick: fewer repetitions, to see whether everything works.
    """

    def __init__(self, cluster: Cluster, folder: Path, quick: bool) -> None:
        self.cluster = cluster
        self.folder = folder
        self.quick = quick
        self.execution_log = folder / "executions"
        self.workers: dict[str, Worker] = {}
        self.keys = Keys(cluster.settings.key_prefix)
        self._owned: dict[str, str] = {}
        self._closed = threading.Event()
        self._owning = threading.Thread(target=self._keep_owned, name="owner", daemon=True)
        self._owning.start()

    def close(self) -> None:
        """End workers and threads."""
        self._closed.set()
        self.stop_workers()
        self._owning.join()

    # -- workers -------------------------------------------------------------------------------------------------------
    def start_workers(
        self, names: Sequence[str], *, provider: str = "node_classes", inside: Sequence[str] = (), **settings: object
    ) -> list[Worker]:
        """Start workers with these names, and wait until all are ready.

        Args:
            provider: function of `benchmarks.nodes` that gives their node classes.
            inside: words before their commands, such as those that enter a namespace.
            settings: ``DC_`` settings of theirs, in lower case.
        """
        started = [self._start(name, provider, inside, settings) for name in names]
        self._wait_ready(names)
        return started

    def use(self, names: Sequence[str]) -> None:
        """Let these workers claim, and no others."""
        for name in self.workers:
            self.cluster.jobs.drain(name, drained=name not in names)
        self.wait_idle(names)

    def wait_idle(self, names: Sequence[str]) -> None:
        """Wait until these have nothing to do."""
        self._wait(lambda: all(self._states().get(name) == "idle" for name in names), f"{', '.join(names)} to be idle")

    def stop_workers(self) -> None:
        """End all of them in good order; what does not follow is killed."""
        for worker in self.workers.values():
            if worker.process.stdin and worker.process.poll() is None:
                worker.process.stdin.close()
        for worker in self.workers.values():
            try:
                worker.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self.workers.clear()

    def _start(self, name: str, provider: str, inside: Sequence[str], settings: Mapping[str, object]) -> Worker:
        folder = self.folder / name
        folder.mkdir()
        given = {
            "redis_url": self.cluster.redis_url,
            "blob_url": self.cluster.blob_url,
            "cache_dir": folder,
            "worker_name": name,
            "host": "bench",
            "threads": 1,
            "engine": "builtin",
            "execution_log": self.execution_log,
            **settings,
        }
        environment = {**os.environ, **{f"DC_{field.upper()}": str(value) for field, value in given.items()}}
        with (folder / "worker.log").open("wb") as output:
            process = subprocess.Popen(
                [*inside, sys.executable, "-m", "benchmarks.worker", f"benchmarks.nodes:{provider}"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        self.workers[name] = Worker(name, process, folder / "worker.log")
        return self.workers[name]

    def _wait_ready(self, names: Sequence[str]) -> None:
        def ready() -> bool:
            for name in names:
                if self.workers[name].process.poll() is not None:
                    raise BenchmarkFailed(f"worker {name} ended: {self.workers[name].log_file.read_text(errors='replace')[-2000:]}")
            return all(self._states().get(name) == "idle" for name in names)

        self._wait(ready, f"{', '.join(names)} to be ready")

    def _states(self) -> dict[str, str]:
        return {worker.facts.name: worker.state for worker in self.cluster.workers.workers()}

    def _wait(self, happened: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        give_up = time.monotonic() + timeout_s
        while not happened():
            if time.monotonic() > give_up:
                raise BenchmarkFailed(f"waited {timeout_s:.0f} s for {what}: {self._states()}")
            time.sleep(POLL_S)

    # -- jobs ----------------------------------------------------------------------------------------------------------
    def submit(self, prompt: Prompt, items: int | None = None, **options: Any) -> QueuedJob:
        """Queue a prompt as the headless master does; its owner lease is kept until `forget`."""
        wanted = SubmitOptions(items=items, **options)
        job = submit_prompt(self.cluster, read_prompt(prompt, wanted), wanted, threading.Event())
        self._owned[job.record.job_id] = job.owner
        return job

    def wait_event(self, job: QueuedJob, kind: str, index: int | None = None, timeout_s: float = 120.0) -> float:
        """Wait for the job's first event of a kind, of one item or any; when it happened in Redis' clock, see `events`."""
        job_id = job.record.job_id
        give_up = time.monotonic() + timeout_s
        cursor, _ = self.cluster.jobs.wait_events(job_id, "", 0.0)
        while time.monotonic() < give_up:
            found = [when for when, its_kind, its_index in self.events(job) if its_kind == kind and index in (None, its_index)]
            if found:
                return found[0]
            cursor, _ = self.cluster.jobs.wait_events(job_id, cursor, 0.25)
        raise BenchmarkFailed(f"job {job_id}: no event {kind} of item {index} within {timeout_s:.0f} s")

    def wait_end(self, job: QueuedJob, timeout_s: float = 300.0) -> None:
        """Wait until the job has ended well."""
        job_id = job.record.job_id
        give_up = time.monotonic() + timeout_s
        cursor, _ = self.cluster.jobs.wait_events(job_id, "", 0.0)
        while not (state := self.cluster.jobs.job_state(job_id)).ended:
            if time.monotonic() > give_up:
                raise BenchmarkFailed(f"job {job_id} is {state.state} after {timeout_s:.0f} s: {state.counts}")
            cursor, _ = self.cluster.jobs.wait_events(job_id, cursor, 0.25)
        if state.state != "done":
            raise BenchmarkFailed(f"job {job_id} is {state.state}: {state.error or state.reason}")

    def events(self, job: QueuedJob) -> list[tuple[float, str, int]]:
        """(when, kind, item) of every event.

        The time is that of the script, in the clock of this host (``time.time()``), which Redis cuts to whole milliseconds; half of one is
        added, so it is right to 0.5 ms.
        """
        entries: Any = self.cluster.client.xrange(self.keys("events", job.record.job_id))
        return [(int(entry.split("-")[0]) / 1000 + 0.0005, fields["k"], int(fields["i"] or -1)) for entry, fields in entries]

    def result(self, job: QueuedJob, index: int = 0) -> ItemResult:
        """The result of a finished item."""
        found = self.cluster.jobs.result(job.record.job_id, index)
        if found is None:
            raise BenchmarkFailed(f"job {job.record.job_id}: item {index} has no result")
        return found[1]

    def forget(self, job: QueuedJob) -> None:
        """Nothing of the job stays: cancelled if it has not ended, its blobs dropped, its bytes settled."""
        job_id = job.record.job_id
        self._owned.pop(job_id, None)
        if not self.cluster.jobs.job_state(job_id).ended:
            self.cluster.jobs.cancel(job_id, "the benchmark is over")
        self.cluster.blobs.drop_job(job_id)
        self.cluster.jobs.settle(job_id)
        self.cluster.jobs.disown(job_id, job.owner)

    def _keep_owned(self) -> None:
        while not self._closed.wait(self.cluster.settings.owner_ttl_s / 5):
            for job_id, owner in list(self._owned.items()):
                self.cluster.jobs.own(job_id, owner)


@contextmanager
def open_rig(*, quick: bool) -> Iterator[Rig]:
    """Servers of its own for one benchmark, with an append-only file for the state; everything ends with the context."""
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="dc-bench-", ignore_cleanup_errors=True)))
        servers = ending.enter_context(redis_servers(read_settings(), private=True))
        settings = read_settings(redis_url=servers.redis_url, blob_url=servers.blob_url, cache_dir=folder / "cache", host="bench")
        cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
        ending.callback(cluster.close)
        rig = Rig(cluster, folder, quick)
        ending.callback(rig.close)
        yield rig


def item_prompt(seconds: float = 0.0) -> Prompt:
    """Items that sleep and give a picture of 8 x 8."""
    return {
        "1": {"class_type": "DistributedSeed", "inputs": {"seed": 1000}},
        "2": {"class_type": "BenchItem", "inputs": {"seed": ["1", 0], "seconds": seconds}},
        "3": {"class_type": "DistributedCollector", "inputs": {"images": ["2", 0], "load_balance": False}},
    }


def image_prompt(width: int, height: int) -> Prompt:
    """Items that give one picture of known bits."""
    return {
        "1": {"class_type": "DistributedSeed", "inputs": {"seed": 0}},
        "2": {"class_type": "BenchImage", "inputs": {"seed": ["1", 0], "width": width, "height": height}},
        "3": {"class_type": "DistributedCollector", "inputs": {"images": ["2", 0], "load_balance": False}},
    }


def ran(result: ItemResult) -> tuple[float, float]:
    """When the item's node began and ended, in ``time.time()``."""
    return float(result.outputs["2"]["began"][0]), float(result.outputs["2"]["ended"][0])


def peak_bytes(client: redis.Redis) -> int:
    """The most memory that a server ever used; servers of a rig are new."""
    memory: Any = client.info("memory")
    return int(memory["used_memory_peak"])
