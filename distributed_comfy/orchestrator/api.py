"""The Python API: `submit`, `watch`, `cancel`, the handle of a job, and `celery_app` to ask for results by Celery's own API.

    import distributed_comfy

    job = distributed_comfy.submit("graph.json", out="pictures", items=8, seed=100)
    print(job.id, job.state().state)
    delivery = job.wait()
    for image in delivery.images:
        print(image.index, delivery.seeds[image.index], image.path)

The servers are those of ``DC_REDIS_URL`` and ``DC_BLOB_URL``, else this user's embedded Redis; another `Settings` can be given.
"""
from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.frame_plan import FrameOption
from distributed_comfy.messages import OnMissing, ResultsGoTo
from distributed_comfy.orchestrator.background import Background
from distributed_comfy.orchestrator.delivery import Delivery, prepare_folder, remove_empty
from distributed_comfy.orchestrator.local_workers import WorkerOptions
from distributed_comfy.orchestrator.run import JobStart, RunOptions, SilentReporter, open_session, run_on
from distributed_comfy.orchestrator.servers import cluster_servers, redis_servers, refuse_where_joined
from distributed_comfy.orchestrator.submit import GivenPrompt, SubmitOptions, check_early, read_prompt
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.records import JobState
from tasks.app import TensorKind, make_app
from tasks.cluster import Cluster, open_cluster

__all__ = ["Delivery", "Job", "JobState", "cancel", "celery_app", "submit", "watch"]

_LOOK_S = 1.0


class Job:
    """A job that this process has submitted and collects, in a thread that also holds its owner lease.

    If the process ends before `wait` has returned, the job is parked; ``distributed-comfy jobs attach`` takes it over, and submitting the
    same prompt into the same folder goes on where it stopped.
    """

    def __init__(self, job_id: str, collecting: _Collecting) -> None:
        self.id = job_id
        """12 hexadecimal digits."""
        self._collecting = collecting

    def wait(self, timeout_s: float | None = None) -> Delivery:
        """Wait until the job has ended and its files are in the folder.

        Raises:
            TimeoutError: it has not, within ``timeout_s``; it goes on.
            JobFailed, JobCancelled, ...: it ended otherwise; `delivery` tells what was saved all the same.
        """
        delivery = self._collecting.delivery(timeout_s)
        if delivery.error is not None:
            raise delivery.error
        return delivery

    @property
    def delivery(self) -> Delivery | None:
        """What was saved, of a failed job too; None while it is under way."""
        return self._collecting.delivery(None) if self._collecting.ended else None

    def cancel(self) -> None:
        """End the job; finished images are kept. `wait` then raises `JobCancelled`.  Without effect on a job that has ended."""
        self._collecting.background.stop()

    def state(self) -> JobState:
        """What the table says about the job; after its end what it said last."""
        return self._collecting.state()


def submit(  # noqa: PLR0913 - named options read better in a script than a dataclass of them
    prompt: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    items: int | None = None,
    seed: int | None = None,
    sets: Sequence[str] = (),
    priority: int = 5,
    user: str = "",
    tags: Sequence[str] = (),
    engine: str = "",
    workers: int = 0,
    wait_s: float = 0.0,
    results: ResultsGoTo = "collector",
    fresh: bool = False,
    on_missing: OnMissing | None = None,
    frames: FrameOption | None = None,
    settings: Settings | None = None,
) -> Job:
    """Queue a prompt and begin to collect it; returns as soon as it is queued.

    Args:
        prompt: path, JSON text or parsed JSON of an API-format prompt.
        out: folder for images and other files; made if it is not there, nothing in it is overwritten.  Needed where results are collected.
        items: seeds to run; None: the collector's own number, else one per live worker.
        seed: item 0's seed; item k has seed + k. None: as in the prompt.
        sets: changes such as ``"3.steps=20"``, as ``--set`` of the command line.
        priority: 0 (last) to 9 (first).
        user: for fairness between users; empty: the login name.
        tags: only workers with all of these.
        engine: only workers with this engine, ``comfyui``, ``builtin`` or ``attach``; empty: any.
        workers: workers to bring up for this job alone; 0: those of the cluster.
        wait_s: queue the job even if no live worker can run it, and cancel it (`NoCapableWorker`) if none can within this time.
        on_missing: ``error``, ``drop`` or ``repeat``: what becomes of items that fail for good, see `Delivery.missing`; None: as the
            collectors of the prompt say.
        results: ``celery``: nothing is collected; results stay in the blob store for Celery's result API, see docs/results.md, and the
            job goes on when this process ends.
        frames: ``exact``, ``auto``, ``zstd``, ``fp16`` or ``lossy``: how tensors travel, see docs/slow-links.md; None: as DC_FRAMES says.
        fresh: start afresh even if ``out`` holds what an unfinished job of the same content has made.
        settings: None: from the environment.
    Raises:
        BadInput, ClusterUnavailable, EngineStartFailed: nothing was queued.
    """
    settings = settings or read_settings()
    refuse_where_joined(settings, "distributed_comfy.run")
    if out is None and results == "collector":
        raise SettingInvalid(name="out", reason="collected results need a folder; give one, or results='celery'")
    asked = SubmitOptions(
        items, seed, sets, priority, user, engine, tags, wait_s, settings.comfyui_path, results, on_missing=on_missing, frames=frames
    )
    given = read_prompt(prompt, asked)
    check_early(given, asked)
    folder = Path(out or ".")
    made = prepare_folder(folder) if results == "collector" else []
    options = RunOptions(folder, asked, workers, WorkerOptions(engine, settings.comfyui_path), fresh=fresh)
    collecting = _Collecting(settings, options, given, made)
    return Job(collecting.wait_submitted(), collecting)


def watch(job_id: str, *, settings: Settings | None = None) -> Iterator[JobState]:
    """The state of any job of the cluster, now and whenever it changes, until it has ended.

    Raises:
        JobUnknown: no such job.
        ClusterUnavailable: no Redis.
    """
    with _connection(settings) as cluster:
        cursor, _ = cluster.jobs.wait_events(job_id, "", 0.0)
        last = None
        while last is None or not last.ended:
            state = cluster.jobs.job_state(job_id)
            if state != last:
                yield state
            last = state
            if not state.ended:
                cursor, _ = cluster.jobs.wait_events(job_id, cursor, _LOOK_S)


def cancel(job_id: str, *, reason: str = "cancelled from Python", settings: Settings | None = None) -> None:
    """Stop everything of a job, whoever submitted it.

    Raises:
        JobUnknown: no such job.
        JobStateInvalid: it has ended.
        ClusterUnavailable: no Redis.
    """
    with _connection(settings) as cluster:
        cluster.jobs.cancel(job_id, reason)


@contextmanager
def celery_app(*, tensors: TensorKind = "numpy", settings: Settings | None = None) -> Iterator[Any]:
    """A Celery application on the cluster's servers, to ask for results: ``app.AsyncResult("3f9a12bc77d0-4").get()``.

    Args:
        tensors: ``numpy``, or ``torch`` where it is installed.
        settings: None: from the environment.
    """
    with cluster_servers(settings or read_settings()) as (mine, servers):
        app = make_app(mine, servers.redis_url, servers.blob_url, tensors)
        try:
            yield app
        finally:
            app.close()


@contextmanager
def _connection(settings: Settings | None) -> Iterator[Cluster]:
    with cluster_servers(settings or read_settings()) as (mine, servers):
        cluster = open_cluster(mine, servers.redis_url, servers.blob_url)
        try:
            yield cluster
        finally:
            cluster.close()


class _Collecting(SilentReporter):
    """The thread behind a `Job`."""

    def __init__(self, settings: Settings, options: RunOptions, given: GivenPrompt, made: Sequence[Path]) -> None:
        self._settings = settings
        self._options = options
        self._given = given
        self._made = made
        self._lock = threading.Lock()
        self._cluster: Cluster | None = None
        self._job_id = ""
        self._last = JobState("pending")
        self._known = threading.Event()
        self.background = Background(self._collect, "collecting")

    @property
    def ended(self) -> bool:
        """Whether everything is over."""
        return self.background.wait(0)

    def wait_submitted(self) -> str:
        """The job's id; raises why there is none."""
        self._known.wait()
        if not self._job_id:
            self.background.result()
        return self._job_id

    def delivery(self, timeout_s: float | None) -> Delivery:
        """What was saved, at the end."""
        if not self.background.wait(timeout_s):
            raise TimeoutError(f"job {self._job_id} has not ended within {timeout_s} s")
        return self.background.result()

    def state(self) -> JobState:
        """Of the job, from the table while that is open."""
        with self._lock:
            if self._cluster is not None:
                self._last = self._cluster.jobs.job_state(self._job_id)
        return self._last

    def submitted(self, start: JobStart) -> None:
        """See `Reporter`."""
        self._job_id = start.record.job_id
        self._known.set()

    def _collect(self, stop: threading.Event) -> Delivery:
        options = replace(self._options, stop=stop)
        try:
            with redis_servers(self._settings) as servers, open_session(self._settings, servers, options, self) as cluster:
                self._cluster = cluster
                try:
                    return run_on(cluster, self._given, options, self)
                finally:
                    self._remember_state()
        finally:
            remove_empty(self._made)
            self._known.set()

    def _remember_state(self) -> None:
        if self._job_id:
            self.state()
        with self._lock:
            self._cluster = None
