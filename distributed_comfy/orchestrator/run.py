"""The headless master: one prompt from file to finished files, on the cluster's workers or on workers of its own.

A run is ended from outside by an event (`RunOptions.stop`) and never by an exception that breaks in from a signal, so whatever was
started is also stopped: run it in a thread, and set the event from the signal handler.
"""
from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import redis
from numpy.typing import NDArray

from distributed_comfy.collector.spool import spool_folder
from distributed_comfy.errors import (
    DistributedComfyError,
    JobCancelled,
    JobError,
    JobOwned,
    JobStateInvalid,
    JobUnknown,
    RunInterrupted,
)
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.orchestrator.delivery import Courier, Delivery, DeliveryOptions, prepare_folder, remove_empty
from distributed_comfy.orchestrator.kept import KeptJob
from distributed_comfy.orchestrator.local_workers import WorkerOptions, local_workers
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.orchestrator.progress import ProgressListener, Step
from distributed_comfy.orchestrator.servers import Servers, redis_servers, refuse_where_joined
from distributed_comfy.orchestrator.submit import GivenPrompt, SubmitOptions, check_early, read_prompt, submit_prompt
from distributed_comfy.orchestrator.waiting import KeptResults, WorkerWatch, watching_workers
from distributed_comfy.settings import Settings
from tasks.cluster import Cluster, open_cluster

log = logging.getLogger(__name__)

INTERRUPTED = "interrupted by its user"
_EMBEDDED = "the embedded Redis ends with the last process that uses it, and these results with it; DC_REDIS_URL names one that stays"
_POLL_S = 0.1
_CANCEL_S = 15.0
"""How long a cancelled job may take to come to its end before its collector stops without it."""


@dataclass(frozen=True)
class JobStart:
    """What a reporter is told when a job is in the table."""

    record: JobRecord
    seeds: Mapping[int, str]
    """Index of each item -> its seed in decimal; empty where nothing varies."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user about what was decided for them."""
    resumed: str = ""
    """The unfinished job that this one takes the place of, or that goes on itself; empty where it starts afresh."""
    resumed_items: frozenset[int] = frozenset()
    """Indexes of the items that were here before."""


class Reporter(Protocol):
    """Who is told how a run goes; called from several threads."""

    @property
    def watches_canvas(self) -> bool:
        """Whether `canvas` is called: each of its pictures reads from all over the canvas, which of a large one is on the disk."""

    def connected(self, servers: Servers) -> None:
        """The servers answer."""

    def workers_starting(self, count: int) -> None:
        """The run brings up its own workers."""

    def workers_ready(self, names: list[str]) -> None:
        """The run's own workers are ready."""

    def submitted(self, start: JobStart) -> None:
        """The job is in the table (or was taken over)."""

    def waiting(self, reason: str) -> None:
        """No live worker can run what the job needs next, or what they made cannot be stored; a sentence, once per outage."""

    def step(self, step: Step) -> None:
        """A worker did some steps."""

    def tiles_planned(self, tiles: Sequence[Sequence[int]]) -> None:
        """An upscale adds items to the job; each makes the tiles of these numbers."""

    def canvas(self, preview: NDArray[np.uint8]) -> None:
        """A small picture of an upscale as it fills, [h, w, 3], its first frame; at most one a second, and one of the end."""

    def item_done(self, index: int, result: ItemResult) -> None:
        """An item has arrived."""


class SilentReporter:
    """A `Reporter` that nobody listens to."""

    @property
    def watches_canvas(self) -> bool:
        """Where a class beneath has a `canvas` of its own."""
        return type(self).canvas is not SilentReporter.canvas

    def connected(self, servers: Servers) -> None:
        """See `Reporter`; so for all below."""

    def workers_starting(self, count: int) -> None:
        """Nothing."""

    def workers_ready(self, names: list[str]) -> None:
        """Nothing."""

    def submitted(self, start: JobStart) -> None:
        """Nothing."""

    def waiting(self, reason: str) -> None:
        """Nothing."""

    def step(self, step: Step) -> None:
        """Nothing."""

    def tiles_planned(self, tiles: Sequence[Sequence[int]]) -> None:
        """Nothing."""

    def canvas(self, preview: NDArray[np.uint8]) -> None:
        """Nothing."""

    def item_done(self, index: int, result: ItemResult) -> None:
        """Nothing."""


@dataclass(frozen=True)
class RunOptions:
    """What `run_prompt` is to do."""

    out: Path
    submit: SubmitOptions = field(default_factory=SubmitOptions)
    workers: int = 0
    """Workers to bring up for this run; 0: those of the cluster."""
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it to end the run: a queued job is cancelled, and what is here is saved."""
    prefix: str = "ComfyUI"
    """First part of the names of collected images."""
    fresh: bool = False
    """Start afresh even if ``out`` holds the spool of an unfinished job of the same content."""
    keep: bool = True
    """Let what is finished of a job that fails or is cancelled wait in ``out`` for the same run again."""


def run_prompt(settings: Settings, source: str | Path | Mapping[str, Any], options: RunOptions, reporter: Reporter) -> Delivery:
    """Queue a prompt, collect it, save its files.

    Args:
        settings: of this process.
        source: path, JSON text or parsed JSON of an API-format prompt.
        options: folder, items, workers.
        reporter: is told how it goes.
    Returns:
        What was saved; with an ``error`` where the job ended otherwise than complete.
    Raises:
        BadInput, ClusterUnavailable: nothing was queued.
        EngineStartFailed: a worker of this run cannot start; nothing was queued.
        RunInterrupted: ``options.stop`` was set before anything was queued.
    """
    refuse_where_joined(settings, "distributed-comfy run")
    given = read_prompt(source, options.submit)
    check_early(given, options.submit)
    made = prepare_folder(options.out) if options.submit.results == "collector" else []
    try:
        with redis_servers(settings) as servers, open_session(settings, servers, options, reporter) as cluster:
            return run_on(cluster, given, options, reporter)
    finally:
        remove_empty(made)


@contextmanager
def open_session(settings: Settings, servers: Servers, options: RunOptions, reporter: Reporter) -> Iterator[Cluster]:
    """Connections and the run's own workers, for as long as the context lasts."""
    cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
    try:
        reporter.connected(servers)
        with own_workers(cluster, servers, options, reporter):
            yield cluster
    finally:
        cluster.close()


@contextmanager
def own_workers(cluster: Cluster, servers: Servers, options: RunOptions, reporter: Reporter) -> Iterator[None]:
    """The workers that ``options`` ask for, ready, for as long as the context lasts; errors as `LocalWorkers`."""
    if options.workers:
        reporter.workers_starting(options.workers)
    with local_workers(cluster, servers, options.workers, options.worker, options.stop) as own:
        if own:
            reporter.workers_ready([worker.name for worker in own])
        yield


def run_on(cluster: Cluster, given: GivenPrompt, options: RunOptions, reporter: Reporter) -> Delivery:
    """`run_prompt` on connections that are open already."""
    kept = options.submit.results == "celery"
    asked = replace(options.submit, resume_in=None if kept or options.fresh else options.out)
    give_up_at = time.monotonic() + asked.wait_s if asked.wait_s > 0 else None
    job = submit_prompt(cluster, given, asked, options.stop)
    warnings = (*job.plan.warnings, _EMBEDDED) if kept and not cluster.settings.redis_url else job.plan.warnings
    start = JobStart(job.record, {item.index: item.seed for item in job.plan.items}, warnings)
    if job.resumed is not None:
        start = replace(start, resumed=job.resumed.job_id, resumed_items=frozenset(job.resumed.spool.items()))
    reporter.submitted(start)
    watching = watching_workers(cluster, job.record, reporter.waiting, partial(_cancel_rest, cluster, job.record.job_id), give_up_at)
    if kept:
        with watching as watch:
            return _given_up(watch, _watch(cluster, start, options.stop, reporter))
    spool = job.resumed.spool if job.resumed else None
    delivery = DeliveryOptions(
        options.out,
        on_item=reporter.item_done,
        ensure_inputs=lambda: job.inputs.ensure(job.record.input_files),
        on_tiles=reporter.tiles_planned,
        on_canvas=reporter.canvas if reporter.watches_canvas else None,
        prefix=options.prefix,
        spool=spool,
        keep=options.keep,
    )
    ownership = Ownership(cluster, job.record.job_id, job.owner)
    with ownership, _listening(cluster, job.record.job_id, reporter), watching as watch:
        return _given_up(watch, _collect(cluster, job.record, delivery, options.stop, ownership.lost))


def attach(cluster: Cluster, job_id: str, out: Path, reporter: Reporter, stop: threading.Event) -> Delivery:
    """Take over a job whose owner is gone, and collect it.

    Items that its last owner had fetched already are taken from ``out`` if that was its folder too; otherwise they run again.

    Raises:
        JobUnknown, JobStateInvalid: see `check_attachable`.
        JobOwned: somebody else collects it.
        OutputUnwritable: ``out`` cannot be written.
    """
    began = time.monotonic()
    record = check_attachable(cluster, job_id, out)
    owner = _take_over(cluster, job_id, stop)
    ownership = Ownership(cluster, job_id, owner)
    watching = watching_workers(cluster, record, reporter.waiting, partial(_cancel_rest, cluster, job_id))
    with ownership, _listening(cluster, job_id, reporter), watching:
        seeds = {index: spec.seed for index, spec in cluster.jobs.specs(job_id).items()}
        reporter.submitted(JobStart(record, seeds))
        on_canvas = reporter.canvas if reporter.watches_canvas else None
        told = DeliveryOptions(out, reporter.item_done, on_tiles=reporter.tiles_planned, on_canvas=on_canvas, began=began)
        return _collect(cluster, record, told, stop, ownership.lost)


def check_attachable(cluster: Cluster, job_id: str, out: Path) -> JobRecord:
    """The record of a job that can be taken over.

    Raises:
        JobUnknown: no such job.
        JobStateInvalid: it failed, was cancelled, or was collected to its end.
    """
    record = cluster.jobs.record(job_id)
    state = cluster.jobs.job_state(job_id)
    spooled = spool_folder(out, job_id).is_dir()
    if state.state in ("failed", "cancelled"):
        raise JobStateInvalid(job_id=job_id, state=state.state, order="attach", needed="a job that can go on; `jobs retry` makes it one")
    if state.state == "done" and not spooled and not cluster.jobs.unfetched(job_id):
        raise JobStateInvalid(job_id=job_id, state="collected", order="attach", needed="a job with results left to fetch")
    return record


def _listening(cluster: Cluster, job_id: str, reporter: Reporter) -> ProgressListener:
    return ProgressListener(cluster, job_id, reporter.step, on_waits=KeptResults(reporter.waiting).hear)


def _given_up(watch: WorkerWatch, delivery: Delivery) -> Delivery:
    """A job that was cancelled because nobody could run it says that."""
    return replace(delivery, error=watch.gave_up) if watch.gave_up and isinstance(delivery.error, JobCancelled) else delivery


def _take_over(cluster: Cluster, job_id: str, stop: threading.Event) -> str:
    """Get the owner lease, waiting for it to run out where its holder does not renew it; the new owner's name."""
    owner = f"{cluster.settings.host_name}-{secrets.token_hex(4)}"
    left_ms = cluster.jobs.owner_lease_ms(job_id)
    while not cluster.jobs.own(job_id, owner):
        if stop.wait(_POLL_S):
            raise RunInterrupted(when="before the job was taken over")
        before_ms, left_ms = left_ms, cluster.jobs.owner_lease_ms(job_id)
        if left_ms > before_ms > 0:
            raise JobOwned(job_id=job_id, owner=cluster.jobs.owner(job_id))
    return owner


def _collect(cluster: Cluster, record: JobRecord, options: DeliveryOptions, stop: threading.Event, lost: threading.Event) -> Delivery:
    """Collect until the job ends; what ends it otherwise also ends its items.

    A job whose folder cannot be written (any more) is left as it is: without an owner it is parked, and can be attached to.  One that
    another process has taken over (``lost``) is left to that one.
    """
    courier = Courier(cluster, record, options)
    try:
        with _cancelling(cluster, record.job_id, courier.stop, stop), _leaving(courier, lost):
            courier.deliver()
    except JobError as error:
        if lost.is_set():
            return courier.delivery(JobOwned(job_id=record.job_id, owner="another process, which took it over"))
        if not isinstance(error, RunInterrupted):
            _cancel_rest(cluster, record.job_id, str(error))
            courier.clear(complete=False)
        return courier.delivery(error)
    except DistributedComfyError as error:
        return courier.delivery(error)
    courier.clear(complete=True)
    return courier.delivery()


def _watch(cluster: Cluster, start: JobStart, stop: threading.Event, reporter: Reporter) -> Delivery:
    """Wait for the end of a job that nobody collects; ``stop`` cancels it, and what is finished stays for Celery."""
    job_id, given_up = start.record.job_id, threading.Event()
    job = KeptJob(cluster, start.record, reporter.item_done, given_up)
    with _listening(cluster, job_id, reporter), _cancelling(cluster, job_id, given_up.set, stop):
        return replace(job.wait(), seeds=start.seeds)


@contextmanager
def _leaving(courier: Courier, lost: threading.Event) -> Iterator[None]:
    """While the context lasts, the event stops the courier."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            if lost.is_set():
                courier.leave()
                return

    threading.Thread(target=watch, name="taken-over", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def _cancelling(cluster: Cluster, job_id: str, give_up: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    """While the context lasts, the event cancels the job; if that does not end it in time, whoever waits for it gives up."""
    over = threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_S):
            if over.is_set():
                return
        if over.is_set():
            return
        told = _cancel_rest(cluster, job_id, INTERRUPTED)
        if not told or not over.wait(_CANCEL_S):
            give_up()

    watcher = threading.Thread(target=watch, name=f"stop-{job_id}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        if stop.is_set():  # it may be telling the servers just now
            watcher.join()


def _cancel_rest(cluster: Cluster, job_id: str, reason: str) -> bool:
    """An ended run leaves nothing running; a job that has ended by itself stays as it is.  False where no server could be told."""
    try:
        if not cluster.jobs.job_state(job_id).ended:
            cluster.jobs.cancel(job_id, reason)
            log.info("job %s is cancelled: %s", job_id, reason)
    except (JobStateInvalid, JobUnknown):  # it ended between the two calls, or long ago
        pass
    except (DistributedComfyError, redis.RedisError) as error:
        log.warning("job %s could not be cancelled (%s); it is parked once its owner lease runs out", job_id, error)
        return False
    return True
