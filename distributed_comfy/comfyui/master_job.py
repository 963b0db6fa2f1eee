"""One prompt's job: queued, owned and collected by a thread of this ComfyUI, asked by the nodes of the prompt."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
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
from distributed_comfy.comfyui.progress import JobProgress
from distributed_comfy.comfyui.queue_watch import Ending
from distributed_comfy.engine.comfyui.failures import is_out_of_memory
from distributed_comfy.errors import (
    ClusterUnavailable,
    CollectedTooLarge,
    DistributedComfyError,
    JobCancelled,
    JobStateInvalid,
    JobUnknown,
    NobodyCapable,
    NoCapableWorker,
    NoWorker,
    OnlyWorkersHave,
    RunInterrupted,
)
from distributed_comfy.log_lines import subject
from distributed_comfy.messages import JobRecord
from distributed_comfy.orchestrator.delivery import CapableWorkers
from distributed_comfy.orchestrator.ownership import Ownership
from distributed_comfy.orchestrator.progress import ProgressListener
from distributed_comfy.orchestrator.submit import GivenPrompt, OuterRun, QueuedJob, SubmitOptions, submit_prompt
from distributed_comfy.planning.plan import JobPlan
from distributed_comfy.state.records import SpoolPlace
from distributed_comfy.workflow.parse import parse_prompt
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

CLUSTER_WAIT_S = 20.0
"""How long a prompt's job waits for the pack's connection to the cluster."""
SUBMIT_S = 15.0
"""How long servers that went away may take to come back before a prompt is not distributed."""
SUBMIT_PAUSE_S = 1.0
CANCEL_S = 5.0
"""How long a cancelled job may take to come to its end before it is left to its lease."""

Phase = Literal["deferred", "starting", "running", "here", "failed", "absent"]
"""``deferred``: not queued before a node asks; ``here``: all of it; ``absent``: there is no job, the prompt runs as if we were not here."""


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
        """Why it is ``failed`` or ``absent``."""
        self.running: RunningJob | None = None
        """Once it is in the table, until its prompt is over."""
        self.phase: Phase = "deferred"
        self._places = places
        self._stop = threading.Event()
        self._reason = ""
        self._over = threading.Event()
        self._keep = False
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
        try:
            return collected_values(running.spool, running.record, plan, self._places.host.blocker())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(self._places.host.model_management, error):
                raise
            megabytes = sum(running.spool.result(index).size_bytes for index in running.spool.items()) // 10**6
            raise CollectedTooLarge(items=running.record.generated, node_id=node_id, megabytes=megabytes, reason=str(error)) from error

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

    # -- the job's own thread
    def _work(self) -> None:
        try:
            self._run(self._places.cluster(CLUSTER_WAIT_S))
            self.phase = "here"
        except (ClusterUnavailable, redis.RedisError) as error:
            self._fail("failed" if self.running or isinstance(error, NobodyCapable) else "absent", error)
        except DistributedComfyError as error:
            self._fail("failed", error)
        except Exception as error:  # the thread's boundary: the node that waits must learn of it
            self._fail("failed", error)
            raise

    def _fail(self, phase: Phase, error: Exception) -> None:
        self.error = error
        if self._stop.is_set():
            log.debug("prompt %s: %s", self.accepted.prompt_id, error)
        elif phase == "absent":
            log.warning("prompt %s is not distributed: %s; this ComfyUI runs it alone, once", self.accepted.prompt_id, error)
        else:
            log.warning("prompt %s: %s", self.accepted.prompt_id, error)
        self.phase = phase

    def _run(self, cluster: Cluster) -> None:
        queued = self._submit(cluster)
        record = queued.record
        with subject(record.job_id), Ownership(cluster, record.job_id, queued.owner), self._listening(cluster, record.job_id):
            self.running = self._begin(cluster, queued)
            self.phase = "running"
            if self._stop.is_set():  # while it was being submitted
                self._cancel_now(cluster, record.job_id, self._reason)
            try:
                self.running.collector.run()
            except CancelledError:
                raise RunInterrupted(when="before all of the job was here") from None
            except DistributedComfyError as error:  # two items of different sizes, for one: the others run in vain
                self._cancel_now(cluster, record.job_id, str(error))
                raise
            finally:
                self._settle(cluster, record.job_id)

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

    def _submit(self, cluster: Cluster) -> QueuedJob:
        parsed = replace(parse_prompt(self.accepted.needed), extra_pnginfo=self.accepted.extra_pnginfo)
        given = GivenPrompt(parsed, Path.cwd(), f"ComfyUI {self.accepted.prompt_id[:8]}")
        takes_part = self._places.takes_part() and self.can_run_here
        outer = OuterRun(
            self.accepted.outputs, self._places.engine_version, self._places.host.folders, self.can_run_here, takes_part
        )
        try:
            queued = self._patiently(cluster, given, SubmitOptions(resume_in=self._places.folder, outer=outer))
        except NoWorker as error:
            raise OnlyWorkersHave(what=", ".join(self.accepted.foreign)) from error
        except NoCapableWorker as error:
            raise NobodyCapable(lacks=f"{error.fields['lacks']}; this ComfyUI lacks {', '.join(self.accepted.foreign)}") from error
        self.progress.begin(queued.record)
        for warning in queued.plan.warnings:
            log.warning("prompt %s: %s", self.accepted.prompt_id, warning)
        log.info("prompt %s is job %s: %d items", self.accepted.prompt_id, queued.record.job_id, queued.record.items)
        return queued

    def _patiently(self, cluster: Cluster, given: GivenPrompt, options: SubmitOptions) -> QueuedJob:
        """Submit, and again for a while where the servers do not answer: run here alone, the prompt would give one item instead of all.

        A job whose submission was not answered has no owner; it ends by itself.
        """
        give_up_at = time.monotonic() + SUBMIT_S
        while True:
            try:
                return submit_prompt(cluster, given, options, self._stop)
            except NoWorker:
                raise
            except (ClusterUnavailable, redis.RedisError) as error:
                if isinstance(error, NoCapableWorker) or time.monotonic() >= give_up_at or self._stop.wait(SUBMIT_PAUSE_S):
                    raise
                log.info("prompt %s: %s; it is tried again", self.accepted.prompt_id, error)

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
