"""One prompt's job: queued, owned and collected by a thread of this ComfyUI, asked by the nodes of the prompt."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import redis

from distributed_comfy.collector.adopt import remove_ended
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest, spool_folder
from distributed_comfy.collector.tile_work import TileLimits
from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.collected import collected_values, upscaled_value
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.keeping import AWAY_S, JobKeeper
from distributed_comfy.comfyui.progress import JobProgress
from distributed_comfy.comfyui.queue_watch import Ending
from distributed_comfy.errors import (
    ClusterUnavailable,
    DistributedComfyError,
    JobCancelled,
    JobStateInvalid,
    JobUnknown,
    NoCapableWorker,
    NoWorker,
    OnlyWorkersHave,
    RunInterrupted,
)
from distributed_comfy.log_lines import subject
from distributed_comfy.messages import JobRecord
from distributed_comfy.orchestrator.delivery import CapableWorkers
from distributed_comfy.orchestrator.progress import ProgressListener
from distributed_comfy.orchestrator.submit import GivenPrompt, OuterRun, QueuedJob, SubmitOptions, submit_again, submit_prompt
from distributed_comfy.planning.plan import JobPlan
from distributed_comfy.state.records import SpoolPlace
from distributed_comfy.workflow.parse import parse_prompt
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

CLUSTER_WAIT_S = 20.0
"""How long a prompt's job waits for the pack's connection to the cluster."""
SUBMIT_S = 15.0
"""How long servers that went away may take to come back before a prompt is not distributed."""
PAUSE_S = 1.0
CANCEL_S = 5.0
"""How long a cancelled job may take to come to its end before it is left to its lease."""

Phase = Literal["deferred", "starting", "running", "here", "failed"]
"""``deferred``: not queued before a node asks; ``starting``: also while it moves to another cluster; ``here``: all of it."""


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


@dataclass(frozen=True)
class RunningJob:
    """A job that is in the table, and is being collected."""

    cluster: Cluster
    record: JobRecord
    plan: JobPlan
    spool: Spool
    collector: Collector

    def has(self, node_id: str) -> bool:
        """Whether all that a node of the prompt gives is here."""
        if self.record.tiles is not None and node_id == self.record.tiles.node_id:
            return self.collector.canvas is not None
        here = sum(index < self.record.generated for index in self.spool.items())
        return here + (len(self.collector.missing) if self.record.spare else 0) >= self.record.generated


class MasterJob:
    """The job of one accepted prompt.

    Args:
        accepted: the prompt.
        places: shared by all jobs.
    """

    def __init__(self, accepted: AcceptedPrompt, places: JobPlaces) -> None:
        self.accepted = accepted
        self.progress = JobProgress()
        self.error: Exception | None = None
        """Why it is ``failed``."""
        self.running: RunningJob | None = None
        """Once it is in the table, until its prompt is over."""
        self.phase: Phase = "deferred"
        self._places = places
        self._stop = threading.Event()
        self._reason = ""
        self._over = threading.Event()
        self._keep = False
        self._move_by = 0.0
        """Until when a cluster that the job has left may take to come back."""
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"job of {accepted.prompt_id[:8]}", daemon=True)

    # -- for the nodes of the prompt
    def start(self) -> None:
        """Queue it, if that has not been done; returns at once."""
        with self._changing:
            if self.phase == "deferred" and not self._over.is_set():
                self.phase = "starting"
                self._thread.start()

    def values(self, node_id: str) -> tuple[Any, ...]:
        """What a node of the prompt gives, which is here; see `collected_values`."""
        running = self.running
        assert running is not None
        if running.record.tiles is not None and node_id == running.record.tiles.node_id:
            canvas = running.collector.canvas
            assert canvas is not None
            return upscaled_value(canvas)
        plan = next(one for one in running.record.collectors if one.node_id == node_id)
        return collected_values(running.spool, running.record, plan, self._places.host.blocker())

    @property
    def can_run_here(self) -> bool:
        """Whether this ComfyUI could run an item itself."""
        return not self.accepted.foreign

    @property
    def over(self) -> bool:
        """Whether its prompt is."""
        return self._over.is_set()

    # -- for whoever follows the prompt
    def end(self, ending: Ending) -> None:
        """The prompt is over: what is under way is cancelled; what is finished waits for the same prompt, if this one failed."""
        self._keep = ending == "error"
        self.cancel(f"its prompt is over ({ending})")
        with self._changing:
            self._over.set()
        if not self._thread.ident:
            return
        threading.Thread(target=self._clear, name=f"end of {self.accepted.prompt_id[:8]}", daemon=True).start()

    def cancel(self, reason: str) -> None:
        """End a job that is under way; returns at once."""
        with self._changing:
            if self._stop.is_set():
                return
            self._reason = reason
            self._stop.set()
        if self.running is not None and self.phase == "running":
            threading.Thread(target=self._cancel, name=f"cancel {self.accepted.prompt_id[:8]}", daemon=True).start()

    def _cancel(self) -> None:
        running = self.running
        assert running is not None
        self._cancel_now(running.cluster, running.record.job_id, self._reason)
        self._thread.join(CANCEL_S)
        running.collector.stop()

    def leave(self, cluster: Cluster, wait_s: float) -> None:
        """Its cluster is gone: go on in another one, which may take so long to come, else without; returns at once."""
        running = self.running
        if running is not None and running.cluster is cluster and self.phase == "running":
            self._move_by = time.monotonic() + wait_s
            running.collector.stop()

    # -- the job's own thread
    def _work(self) -> None:
        try:
            self._run()
            self.phase = "here"
        except (DistributedComfyError, redis.RedisError) as error:
            self._fail(error)
        except Exception as error:  # the thread's boundary: the node that waits must learn of it
            self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        self.error = error
        log.log(logging.DEBUG if self._stop.is_set() else logging.WARNING, "prompt %s: %s", self.accepted.prompt_id, error)
        self.phase = "failed"

    def _run(self) -> None:
        cluster, queued = self._queue()
        with subject(queued.record.job_id):
            while not self._collect(cluster, queued):
                cluster, queued = self._move(queued)

    def _collect(self, cluster: Cluster, queued: QueuedJob) -> bool:
        """Collect all of it; False where the cluster has gone before."""
        record = queued.record
        self.running = running = self._begin(cluster, queued)
        with ExitStack() as meanwhile:
            if cluster is not self._places.alone:
                meanwhile.enter_context(self._places.keeper.keeping(cluster, record.job_id, queued.owner, lambda: self.leave(cluster, 0.0)))
                meanwhile.enter_context(self._listening(cluster, record.job_id))
            self.phase = "running"
            if self._stop.is_set():  # while it was being submitted
                self._cancel_now(cluster, record.job_id, self._reason)
            try:
                running.collector.run()
            except CancelledError:
                if not self._stop.is_set():
                    self.phase = "starting"
                    return False
                self._settle(cluster, record.job_id)
                raise RunInterrupted(when="before all of the job was here") from None
            except JobUnknown:
                if self._stop.is_set():
                    raise
                self.phase, self._move_by = "starting", time.monotonic() + AWAY_S
                return False
            except DistributedComfyError as error:  # two items of different sizes, for one: the others run in vain
                self._cancel_now(cluster, record.job_id, str(error))
                self._settle(cluster, record.job_id)
                raise
            self._settle(cluster, record.job_id)
            return True

    def _move(self, queued: QueuedJob) -> tuple[Cluster, QueuedJob]:
        """Enter the job where the next cluster is: what is in the spool does not run again."""
        running, record = self.running, queued.record
        assert running is not None
        log.warning("job %s: its cluster is gone; it goes on with %d items in the next one", record.job_id, len(running.spool.items()))
        while True:
            try:
                cluster = self._places.cluster(max(0.0, self._move_by - time.monotonic()))
                moved = submit_again(cluster, queued, running.spool, self._outer())
            except (ClusterUnavailable, redis.RedisError) as error:
                if self._stop.wait(PAUSE_S):
                    raise RunInterrupted(when="before all of the job was here") from None
                if time.monotonic() >= self._move_by and self.can_run_here:
                    self._tell_alone(error)
                    return self._places.alone, submit_again(self._places.alone, queued, running.spool, self._outer())
            else:
                log.info("job %s goes on: %d of %d items are here", record.job_id, len(running.spool.items()), record.items)
                return cluster, moved

    def _tell_alone(self, error: Exception) -> None:
        log.warning("prompt %s is not distributed: %s; this ComfyUI makes what is missing itself", self.accepted.prompt_id, error)

    def _listening(self, cluster: Cluster, job_id: str) -> ProgressListener:
        return ProgressListener(cluster, job_id, self.progress.step)

    def _cancel_now(self, cluster: Cluster, job_id: str, reason: str) -> None:
        try:
            cluster.jobs.cancel(job_id, reason)
            log.info("job %s is cancelled: %s", job_id, reason)
        except (JobStateInvalid, JobUnknown):  # it has ended by itself
            pass
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("job %s could not be cancelled (%s); it is parked once its owner lease runs out", job_id, error)
            if self.running is not None:
                self.running.collector.stop()

    def _outer(self) -> OuterRun:
        takes_part = self._places.takes_part() and self.can_run_here
        return OuterRun(
            self.accepted.outputs, self._places.engine_version, self._places.host.folders, self.can_run_here, takes_part
        )

    def _queue(self) -> tuple[Cluster, QueuedJob]:
        """Enter the job in the table of the cluster; of this ComfyUI alone, where none answers."""
        parsed = replace(parse_prompt(self.accepted.needed), extra_pnginfo=self.accepted.extra_pnginfo)
        given = GivenPrompt(parsed, Path.cwd(), f"ComfyUI {self.accepted.prompt_id[:8]}")
        options = SubmitOptions(resume_in=self._places.folder, outer=self._outer())
        try:
            cluster, queued = self._patiently(given, options)
        except NoWorker as error:
            raise OnlyWorkersHave(what=", ".join(self.accepted.foreign)) from error
        except NoCapableWorker as error:
            raise NoCapableWorker(lacks=f"{error.fields['lacks']}; this ComfyUI lacks {', '.join(self.accepted.foreign)}") from error
        except (ClusterUnavailable, redis.RedisError) as error:
            if self._stop.is_set() or not self.can_run_here:
                raise
            self._tell_alone(error)
            cluster, queued = self._places.alone, submit_prompt(self._places.alone, given, options, self._stop)
        self.progress.begin(queued.record)
        for warning in queued.plan.warnings:
            log.warning("prompt %s: %s", self.accepted.prompt_id, warning)
        log.info("prompt %s is job %s: %d items", self.accepted.prompt_id, queued.record.job_id, queued.record.items)
        return cluster, queued

    def _patiently(self, given: GivenPrompt, options: SubmitOptions) -> tuple[Cluster, QueuedJob]:
        """Submit, and again for a while where the servers do not answer.

        A job whose submission was not answered has no owner; it ends by itself.
        """
        give_up_at = time.monotonic() + SUBMIT_S
        cluster = self._places.cluster(CLUSTER_WAIT_S)
        while True:
            try:
                return cluster, submit_prompt(cluster, given, options, self._stop)
            except NoWorker:
                raise
            except (ClusterUnavailable, redis.RedisError) as error:
                if isinstance(error, NoCapableWorker) or time.monotonic() >= give_up_at or self._stop.wait(PAUSE_S):
                    raise
                log.info("prompt %s: %s; it is tried again", self.accepted.prompt_id, error)
            cluster = self._places.cluster(SUBMIT_S)  # embedded servers that were started again are others

    def _begin(self, cluster: Cluster, queued: QueuedJob) -> RunningJob:
        record, folder = queued.record, self._places.folder
        manifest = SpoolManifest(record.job_id, record.resume_key)
        spool = queued.resumed.spool if queued.resumed else Spool(spool_folder(folder, record.job_id), manifest)
        place = SpoolPlace(cluster.settings.host_name, str(spool.folder.absolute()), str(folder.absolute()))
        try:
            cluster.jobs.note_spool(record.job_id, place)
        except (ClusterUnavailable, redis.RedisError) as error:  # the collector waits for a table that comes back
            log.warning("job %s: the table is not told where its spool lies: %s", record.job_id, error)
        tiles = TileLimits(
            blob_bytes=cluster.settings.blob_limit_bytes,
            workers=CapableWorkers(cluster, record),
            on_planned=self.progress.tiles_planned,
        )
        options = CollectorOptions(
            on_item=self.progress.item_done, ensure_inputs=lambda: queued.inputs.ensure(record.input_files), tiles=tiles
        )
        collector = Collector(record, cluster.jobs, cluster.blobs, spool, options)
        return RunningJob(cluster, record, queued.plan, spool, collector)

    def _settle(self, cluster: Cluster, job_id: str) -> None:
        """Nothing of an ended job stays on the servers."""
        try:
            cluster.jobs.settle(job_id)
            cluster.blobs.drop_job(job_id)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("job %s: not cleared from the servers (%s); it expires there by itself", job_id, error)

    # -- after the prompt
    def _clear(self) -> None:
        """The spool goes, unless the same prompt may go on with it."""
        self._thread.join()
        running, self.running = self.running, None
        if running is None:
            return
        if self._keep and running.spool.items():
            running.spool.mark_ended()
            running.spool.close()
        else:
            running.spool.remove()
        remove_ended(self._places.folder / SPOOL_FOLDER, "" if self._keep else running.record.resume_key)


def is_cancelled(error: Exception | None) -> bool:
    """Whether a job ended because it was told to."""
    return isinstance(error, (JobCancelled, RunInterrupted))
