"""The headless master: one prompt from file to finished files, on the cluster's workers or on workers of its own."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from distributed_comfy.errors import DistributedComfyError, JobOwned
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.orchestrator.delivery import Courier, Delivery, DeliveryOptions, prepare_folder
from distributed_comfy.orchestrator.local_workers import WorkerOptions, local_workers
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.orchestrator.progress import ProgressListener, Step
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.orchestrator.submit import QueuedJob, SubmitOptions, submit_prompt
from distributed_comfy.settings import Settings
from tasks.cluster import Cluster, open_cluster

log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Who is told how a run goes; called from several threads."""

    def connected(self, servers: Servers) -> None:
        """The servers answer."""

    def workers_ready(self, names: list[str]) -> None:
        """The run's own workers are ready."""

    def submitted(self, record: JobRecord, warnings: tuple[str, ...]) -> None:
        """The job is in the table."""

    def step(self, step: Step) -> None:
        """A worker did some steps."""

    def item_done(self, index: int, result: ItemResult) -> None:
        """An item has arrived."""


@dataclass(frozen=True)
class RunOptions:
    """What `run_prompt` is to do."""

    out: Path
    submit: SubmitOptions = field(default_factory=SubmitOptions)
    workers: int = 0
    """Workers to bring up for this run; 0: those of the cluster."""
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    private: bool = False
    """Use a private embedded Redis, whatever is configured."""


@contextmanager
def open_session(settings: Settings, options: RunOptions, reporter: Reporter) -> Iterator[Cluster]:
    """Servers, connections and the run's own workers, for as long as the context lasts."""
    with redis_servers(settings, private=options.private) as servers:
        cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
        try:
            reporter.connected(servers)
            with local_workers(cluster, servers, options.workers, options.worker) as own:
                if own:
                    reporter.workers_ready([worker.name for worker in own])
                yield cluster
        finally:
            cluster.close()


def run_prompt(settings: Settings, source: str | Path | Mapping[str, Any], options: RunOptions, reporter: Reporter) -> Delivery:
    """Queue a prompt, collect it, save its files.

    Args:
        settings: of this process.
        source: path, JSON text or parsed JSON of an API-format prompt.
        options: folder, items, workers.
        reporter: is told how it goes.
    Raises:
        BadInput, ClusterUnavailable: nothing was queued.
        JobError: the job ended otherwise than complete; ``delivery`` on the error tells what was saved all the same.
        KeyboardInterrupt: Ctrl-C; the job is cancelled then.
    """
    prepare_folder(options.out)
    with open_session(settings, options, reporter) as cluster:
        return run_on(cluster, source, options, reporter)


def run_on(cluster: Cluster, source: str | Path | Mapping[str, Any], options: RunOptions, reporter: Reporter) -> Delivery:
    """`run_prompt` on connections that are open already."""
    job = submit_prompt(cluster, source, options.submit)
    reporter.submitted(job.record, job.plan.warnings)
    delivery = DeliveryOptions(options.out, reporter.item_done, lambda: job.inputs.ensure(job.record.input_files))
    return _collect(cluster, job, delivery, reporter)


def attach(cluster: Cluster, job_id: str, out: Path, reporter: Reporter) -> Delivery:
    """Take over a job whose owner is gone, and collect it.

    Raises:
        JobUnknown: no such job.
        JobOwned: somebody else collects it.
    """
    record = cluster.jobs.record(job_id)
    owner = f"{cluster.settings.host_name}-attach-{job_id}"
    if not cluster.jobs.own(job_id, owner):
        raise JobOwned(job_id=job_id, owner=cluster.jobs.owner(job_id))
    reporter.submitted(record, ())
    with Ownership(cluster, job_id, owner), ProgressListener(cluster, job_id, reporter.step):
        return Courier(cluster, record, DeliveryOptions(out, reporter.item_done)).deliver()


def _collect(cluster: Cluster, job: QueuedJob, options: DeliveryOptions, reporter: Reporter) -> Delivery:
    job_id = job.record.job_id
    courier = Courier(cluster, job.record, options)
    with Ownership(cluster, job_id, job.owner), ProgressListener(cluster, job_id, reporter.step):
        try:
            return courier.deliver()
        except DistributedComfyError as error:
            _cancel_rest(cluster, job_id, str(error))
            error.__dict__["delivery"] = courier.delivery
            raise
        except KeyboardInterrupt:
            _cancel_rest(cluster, job_id, "interrupted by its user")
            raise


def _cancel_rest(cluster: Cluster, job_id: str, reason: str) -> None:
    """An ended run leaves nothing running; a job that has ended by itself stays as it is."""
    if not cluster.jobs.job_state(job_id).ended:
        cluster.jobs.cancel(job_id, reason)
        log.info("job %s is cancelled: %s", job_id, reason)


