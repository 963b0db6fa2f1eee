"""Enters the job of a prompt in a table: the cluster's, else that of this ComfyUI alone; and in another one where that is gone."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import redis

from distributed_comfy.collector.spool import Spool
from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.keeping import JobKeeper
from distributed_comfy.comfyui.lanes import Lanes
from distributed_comfy.comfyui.saves import SaveWatch
from distributed_comfy.comfyui.titles import title_of
from distributed_comfy.errors import (
    BlobStoreFull,
    ClusterUnavailable,
    ConnectionLost,
    NobodyCapable,
    NoCapableWorker,
    NoItemsHere,
    NoWorker,
    OnlyWorkersHave,
    RunInterrupted,
)
from distributed_comfy.orchestrator.submit import (
    GivenPrompt,
    OuterRun,
    QueuedJob,
    SubmitOptions,
    enter_job,
    give_up_job,
    prepare_job,
    submit_again,
    submit_prompt,
)
from distributed_comfy.workflow.parse import parse_prompt
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

CLUSTER_WAIT_S = 20.0
"""How long a prompt's job waits for the pack's connection to the cluster."""
SUBMIT_S = 15.0
"""How long servers that went away may take to come back before a prompt is not distributed."""
PAUSE_S = 1.0
AWAY = (ClusterUnavailable, ConnectionLost, BlobStoreFull, redis.RedisError)
"""How one of the two servers says that it is not there, or takes nothing."""


@dataclass(frozen=True)
class JobPlaces:
    """What all jobs of this process share."""

    host: ComfyHost
    cluster: Callable[[float], Cluster]
    """See `Session.cluster`."""
    folder: Path
    """Spools lie below it."""
    engine_version: str
    """Of this ComfyUI, as a worker of it would tell it."""
    takes_part: Callable[[], bool]
    """The user's choice, as it is now."""
    alone: Cluster
    """What is used while there is no other; see `alone.open_alone`."""
    keeper: JobKeeper
    lanes: Lanes
    saves: SaveWatch
    """What nodes of this ComfyUI are about to save."""
    workers_starting: Callable[[Cluster], Collection[str]] = field(default=lambda cluster: ())
    """Names of workers that may soon be there for the jobs of a cluster; see `HostWorkers.starting`."""


@dataclass(frozen=True)
class Entered:
    """A job that is in a table."""

    cluster: Cluster
    queued: QueuedJob


class JobEntry:
    """Of one prompt.

    Args:
        accepted: the prompt.
        places: shared by all jobs.
        stop: set when the prompt is over.
    """

    def __init__(self, accepted: AcceptedPrompt, places: JobPlaces, stop: threading.Event) -> None:
        self._accepted = accepted
        self._places = places
        self._stop = stop

    def enter(self) -> Entered:
        """Enter the job in the table of the cluster; of this ComfyUI alone, where none answers.

        Raises:
            BadInput: any of its kinds, as `submit_prompt`.
            OnlyWorkersHave, NobodyCapable, NoItemsHere: this ComfyUI cannot run it, and nobody else can now.
            ClusterUnavailable: this ComfyUI cannot run it, and there is no cluster.
        """
        parsed = replace(parse_prompt(self._accepted.needed), extra_pnginfo=self._accepted.extra_pnginfo)
        accepted, user_folder = self._accepted, self._places.host.user_folder
        title = title_of(accepted.planned, accepted.outputs, accepted.extra_pnginfo, time.time(), user_folder=user_folder)
        given = GivenPrompt(parsed, Path.cwd(), title)
        options = SubmitOptions(resume_in=self._places.folder, outer=self._outer())
        lacking = ", ".join(self._accepted.foreign)
        barred = self._places.host.cannot_add_nodes
        try:
            entered = self._patiently(given, options)
        except NoWorker as error:
            if not lacking:
                raise NoItemsHere(why=barred, reason="no worker is alive", remedy=error.fields["remedy"]) from error
            raise OnlyWorkersHave(what=lacking, remedy=error.fields["remedy"]) from error
        except NoCapableWorker as error:
            if not lacking:
                raise NoItemsHere(why=barred, reason=error.fields["lacks"], remedy="start one that can") from error
            raise NobodyCapable(lacks=f"{error.fields['lacks']}; this ComfyUI lacks {lacking}") from error
        except AWAY as error:
            if self._stop.is_set() or lacking:
                raise
            if barred:
                raise NoItemsHere(why=barred, reason=str(error), remedy="start a server and a worker") from error
            self._tell_alone(error)
            entered = Entered(self._places.alone, submit_prompt(self._places.alone, given, options, self._stop))
        record, plan = entered.queued.record, entered.queued.plan
        for warning in plan.warnings:
            log.warning("prompt %s: %s", self._accepted.prompt_id, warning)
        log.info("prompt %s is job %s: %d items", self._accepted.prompt_id, record.job_id, record.items)
        return entered

    def enter_again(self, queued: QueuedJob, spool: Spool, give_up_at: float) -> Entered:
        """Enter the job where the next cluster is: what is in the spool does not run again.

        Args:
            queued: the job, whose table is gone.
            spool: its own, open.
            give_up_at: when the next cluster has taken too long, by the monotonic clock, and this ComfyUI makes the rest itself.
        Raises:
            RunInterrupted: the prompt was over before.
        """
        record, here = queued.record, len(spool.items())
        log.warning("job %s: its cluster is gone; it goes on with %d items in the next one", record.job_id, here)
        while True:
            try:
                cluster = self._places.cluster(max(0.0, give_up_at - time.monotonic()))
                moved = submit_again(cluster, queued, spool, self._outer())
            except AWAY as error:
                if self._stop.wait(PAUSE_S):
                    raise RunInterrupted(when="before all of the job was here") from None
                if time.monotonic() < give_up_at or not self._can_run_items:
                    continue
                alone = self._places.alone
                moved = submit_again(alone, queued, spool, self._outer())
                log.warning(
                    "job %s goes on in this ComfyUI alone, which makes the %d of %d items that are missing: %s",
                    record.job_id, record.items - here, record.items, error,
                )  # fmt: skip
                return Entered(alone, moved)
            log.info("job %s goes on: %d of %d items are here", record.job_id, here, record.items)
            return Entered(cluster, moved)

    @property
    def _can_run_items(self) -> bool:
        """Whether this ComfyUI can make items of this job."""
        return not self._accepted.foreign and not self._places.host.cannot_add_nodes

    def _outer(self) -> OuterRun:
        can_run = self._can_run_items
        takes_part = self._places.takes_part() and can_run
        return OuterRun(self._accepted.outputs, self._places.engine_version, self._places.host.folders, can_run, takes_part)

    def _patiently(self, given: GivenPrompt, options: SubmitOptions) -> Entered:
        """Submit, and again for a while where the servers do not answer.

        It is the same job each time, of the same owner: where only the answer was lost it is in the table, and holds what it goes on with.
        """
        give_up_at = time.monotonic() + SUBMIT_S
        cluster = self._places.cluster(CLUSTER_WAIT_S)
        prepared: QueuedJob | None = None
        try:
            while True:
                try:
                    if prepared is not None:
                        spool = prepared.resumed.spool if prepared.resumed is not None else None
                        return Entered(cluster, submit_again(cluster, prepared, spool, self._outer()))
                    prepared = prepare_job(cluster, given, options, self._stop)
                    enter_job(cluster, prepared, options.outer)
                    return Entered(cluster, prepared)
                except NoWorker:
                    raise
                except AWAY as error:
                    if isinstance(error, NoCapableWorker) or time.monotonic() >= give_up_at or self._stop.wait(PAUSE_S):
                        raise
                    log.info("prompt %s: %s; it is tried again", self._accepted.prompt_id, error)
                cluster = self._places.cluster(SUBMIT_S)  # embedded servers that were started again are others
        except BaseException as error:
            if prepared is not None:
                give_up_job(cluster, prepared, error)
            raise

    def _tell_alone(self, error: Exception) -> None:
        log.warning("prompt %s is not distributed: %s; this ComfyUI makes what is missing itself", self._accepted.prompt_id, error)
