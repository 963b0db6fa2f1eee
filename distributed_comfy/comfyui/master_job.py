"""One prompt's job: queued, owned and collected for the nodes of the prompt, which ask for it when ComfyUI comes to them."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import redis

from distributed_comfy.collector.adopt import remove_ended
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest, spool_folder
from distributed_comfy.collector.tile_work import TileLimits
from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.arrivals import Arrivals, arrivals_of
from distributed_comfy.comfyui.collected import collected_values, upscaled_value
from distributed_comfy.comfyui.job_entry import Entered, JobEntry, JobPlaces
from distributed_comfy.comfyui.keeping import AWAY_S
from distributed_comfy.comfyui.progress import JobProgress
from distributed_comfy.comfyui.queue_watch import Ending
from distributed_comfy.comfyui.running_job import RunningJob
from distributed_comfy.engine.comfyui.failures import is_out_of_memory
from distributed_comfy.errors import (
    ClusterUnavailable,
    CollectedTooLarge,
    DistributedComfyError,
    JobCancelled,
    JobLost,
    JobStateInvalid,
    JobUnknown,
    RunInterrupted,
)
from distributed_comfy.log_lines import subject
from distributed_comfy.messages import ItemResult
from distributed_comfy.orchestrator.delivery import CapableWorkers
from distributed_comfy.orchestrator.progress import ProgressListener
from distributed_comfy.state.records import SpoolPlace
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

CANCEL_S = 5.0
"""How long a cancelled job may take to come to its end before it is left to its lease."""
CLOSE_S = 2.0
"""The same where this ComfyUI ends."""

_ENDED: dict[Ending, str] = {
    "success": "its prompt is over", "error": "its prompt has failed", "interrupted": "its prompt is interrupted",
    "gone": "its prompt has left the queue",
}  # fmt: skip
"""Why a job is cancelled whose prompt has ended before it."""

Phase = Literal["deferred", "starting", "queued", "running", "here", "failed"]
"""``deferred``: not queued yet; ``queued``: in the table, and nobody collects it; ``starting``: on its way, also to another cluster;
``running``: being collected; ``here``: all of it."""


class MasterJob:
    """The job of one accepted prompt; safe to use from several threads.

    Args:
        accepted: the prompt.
        places: shared by all jobs.
    """

    def __init__(self, accepted: AcceptedPrompt, places: JobPlaces) -> None:
        self.accepted = accepted
        self.progress = JobProgress()
        self.workers_starting = places.workers_starting
        self.error: Exception | None = None
        """Why it is ``failed``."""
        self.running: RunningJob | None = None
        """Once it is collected, until its prompt is over."""
        self.phase: Phase = "deferred"
        self.interrupted = False
        """Its prompt is, and may run on for a while."""
        self.ending: Ending | None = None
        """How its prompt has ended, once it has."""
        self._places = places
        self._stop = threading.Event()
        self._reason = ""
        self._over = threading.Event()
        self._asked = False
        self._keep = self._deleted = False
        self._entry = JobEntry(accepted, places, self._stop)
        self._entered: Entered | None = None
        self._spool: Spool | None = None
        self._arrivals: Arrivals | None = None
        self._left = False
        """The cluster that it is in is gone."""
        self._move_by = 0.0
        """Until when the next one may take."""
        self._listener: ProgressListener | None = None
        self._done = threading.Event()
        """Nothing of it runs any more."""
        self._cleared = False
        self._halted = False
        self._changing = threading.Lock()

    # -- for the nodes of the prompt
    def start(self) -> None:
        """A node asks for it: it waits for no other job any more; returns at once."""
        with self._changing:
            if self._asked or self._over.is_set():
                return
            self._asked, phase = True, self.phase
        if self._arrivals is not None:
            self._arrivals.begin()
        if phase in ("deferred", "queued"):
            self._spawn(self.enter if phase == "deferred" else self._collect)
        self._listen()

    def values(self, node_id: str) -> tuple[Any, ...]:
        """What a node of the prompt gives, which is here; see `collected_values`."""
        running = self.running
        assert running is not None
        self.progress.items_here(running.spool.items())
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

    def shown(self, node_id: str) -> dict[str, Any]:
        """What that node shows; see `Arrivals.shown`."""
        return self._arrivals.shown(node_id) if self._arrivals is not None else {}

    @property
    def job_id(self) -> str:
        """In the table; empty before."""
        return self._entered.queued.record.job_id if self._entered is not None else ""

    @property
    def can_run_here(self) -> bool:
        """Whether this ComfyUI could run an item itself."""
        return not self.accepted.foreign and not self._places.host.cannot_add_nodes

    @property
    def over(self) -> bool:
        """Whether its prompt is."""
        return self._over.is_set()

    # -- for whoever follows the prompt
    @property
    def waits_in(self) -> Cluster | None:
        """The cluster in which it is queued while nobody collects it; None where that is not so."""
        return self._entered.cluster if self.phase == "queued" and self._entered is not None else None

    def collect(self) -> None:
        """Let it be collected before its turn; returns at once."""
        self._spawn(self._collect)

    def enter(self) -> None:
        """Enter it in the table, if that has not been done, and let it be collected when its turn comes; waits for servers."""
        with self._changing:
            if self.phase != "deferred":
                return
            self.phase = "starting"
        with self._boundary():
            if self._stop.is_set():
                raise RunInterrupted(when="before a job was queued")
            self._enqueue(self._entry.enter())

    def end(self, ending: Ending) -> None:
        """The prompt is over: what is under way is cancelled; what is finished waits for the same prompt, if this one failed."""
        self._keep, self._deleted = ending in ("error", "interrupted"), ending == "gone"
        self.ending = ending
        self.cancel(_ENDED[ending])
        with self._changing:
            self._over.set()
        self._places.lanes.soon(self._clear)

    def interrupt(self) -> None:
        """Its prompt is interrupted: end what is under way now, not when the prompt ends; returns at once, waits for no lock."""
        if not self.interrupted:
            self.interrupted = True
            self._spawn(lambda: self.cancel(_ENDED["interrupted"]))

    def cancel(self, reason: str) -> None:
        """End a job that is under way; returns at once."""
        with self._changing:
            if self._stop.is_set():
                return
            self._reason = reason
            self._stop.set()
            phase = self.phase
        if phase == "running":
            self._spawn(self._cancel)
        elif phase == "queued" and self.interrupted:  # it does not wait behind all that are being queued
            self._spawn(self._collect)
        elif phase == "queued":
            self._places.lanes.soon(self._collect)

    def _cancel(self) -> None:
        running = self.running
        if running is not None:  # else it has come to its end meanwhile, and is cleared away
            self._cancel_now(running.cluster, running.record.job_id, self._reason)
            self._done.wait(CANCEL_S)
            running.collector.stop()

    def leave(self, cluster: Cluster, wait_s: float) -> None:
        """Its cluster is gone: go on in another one, which may take so long to come, else without; returns at once."""
        with self._changing:
            entered, phase = self._entered, self.phase
            if entered is None or entered.cluster is not cluster or phase not in ("queued", "running") or self._left:
                return
            self._left, self._move_by = True, time.monotonic() + wait_s
        self._places.keeper.forget(entered.queued.record.job_id)
        if phase == "queued":
            self._places.lanes.soon(self._move_queued)
        elif self.running is not None:
            self.running.collector.stop()

    def halt(self) -> None:
        """This ComfyUI ends: nothing of the job goes on here; returns at once."""
        with self._changing:
            self._keep, self._reason, self._halted = True, "its ComfyUI ends", True
            self._stop.set()
            self._over.set()
            running, arrivals = self.running, self._arrivals
        if running is not None:
            running.collector.stop()
        if arrivals is not None:
            arrivals.halt()

    def close(self) -> None:
        """After `halt`: the job ends in the table, and what is finished waits for the same prompt; waits for servers and threads."""
        entered, phase = self._entered, self.phase
        if phase == "queued":
            self._collect()
        elif entered is not None and phase != "here":
            self._cancel_now(entered.cluster, entered.queued.record.job_id, self._reason)
            self._done.wait(CLOSE_S)
        self._clear()

    # -- the work, in threads
    def _spawn(self, work: Any) -> None:
        threading.Thread(target=work, name=f"job of {self.accepted.prompt_id[:8]}", daemon=True).start()

    @contextmanager
    def _boundary(self) -> Iterator[None]:
        """Round all work: the node that waits must learn how it ends."""
        try:
            yield
        except (DistributedComfyError, redis.RedisError) as error:
            self._fail(error)
        except Exception as error:
            self._fail(error)
            if not self._halted:  # Python begins nothing any more where it ends
                raise
        finally:
            if self.phase in ("here", "failed"):
                self._places.keeper.leave(self.job_id)
                self._done.set()
                if self._over.is_set():
                    self._clear()

    def _fail(self, error: Exception) -> None:
        self.error = error
        log.log(logging.DEBUG if self._stop.is_set() else logging.WARNING, "prompt %s: %s", self.accepted.prompt_id, error)
        self.phase = "failed"

    def _enqueue(self, entered: Entered) -> None:
        """It is in a table: from now on it has an owner, and somebody collects it."""
        self._entered, self._left = entered, False
        self._own(entered)
        self.progress.begin(entered.queued.record, entered.queued.plan.warnings)
        with self._changing:
            self.phase = "queued"
            asked = self._asked
        if self._stop.is_set():
            self._places.lanes.soon(self._collect)
        elif asked:
            self._spawn(self._collect)
        else:
            self._places.lanes.collect(self._collect)

    def _own(self, entered: Entered) -> None:
        if entered.cluster is not self._places.alone:
            record, cluster = entered.queued.record, entered.cluster
            self._places.keeper.keep(cluster, record.job_id, entered.queued.owner, lambda: self.leave(cluster, 0.0))

    def _collect(self) -> None:
        with self._changing:
            if self.phase != "queued":
                return
            self.phase = "starting"
        assert self._entered is not None
        with subject(self.job_id), self._boundary():
            if self._stop.is_set():
                self._drop(self._entered)
            while self._left or not self._collected(self._entered):
                self._move()
            self.phase = "here"

    def _drop(self, entered: Entered) -> None:
        """Cancel it before anybody has begun to collect it."""
        self._cancel_now(entered.cluster, entered.queued.record.job_id, self._reason)
        self._settle(entered.cluster, entered.queued.record.job_id)
        raise RunInterrupted(when="before all of the job was here")

    def _collected(self, entered: Entered) -> bool:
        """Collect all of it; False where the cluster has gone before."""
        cluster, job_id = entered.cluster, entered.queued.record.job_id
        self.running = running = self._begin(entered)
        self.phase = "running"
        self._listen()
        if self._stop.is_set():  # while it was being submitted
            self._cancel_now(cluster, job_id, self._reason)
        if self._left:
            running.collector.stop()
        try:
            running.collector.run()
        except CancelledError:
            if self._stop.is_set():
                self._settle(cluster, job_id)
                raise RunInterrupted(when="before all of the job was here") from None
            return False
        except (JobUnknown, JobLost):  # the server came back without its data
            if self._stop.is_set():
                raise
            self._left, self._move_by = True, time.monotonic() + AWAY_S
            return False
        except JobCancelled:  # by `cancel`, or by a command
            self._settle(cluster, job_id)
            raise
        except DistributedComfyError as error:  # two items of different sizes, for one: the others run in vain
            self._cancel_now(cluster, job_id, str(error))
            self._settle(cluster, job_id)
            raise
        finally:
            self._listen_no_more()
        self._settle(cluster, job_id)
        return True

    # -- to another cluster
    def _move(self) -> None:
        self.phase = "starting"
        assert self._entered is not None
        self._entered = self._entry.enter_again(self._entered.queued, self._open_spool(self._entered), self._move_by)
        self._left = False
        self._own(self._entered)

    def _move_queued(self) -> None:
        with self._changing:
            if self.phase != "queued" or not self._left:
                return
            self.phase = "starting"
        assert self._entered is not None
        with self._boundary():
            self._enqueue(self._entry.enter_again(self._entered.queued, self._open_spool(self._entered), self._move_by))

    # -- steps
    def _listen(self) -> None:
        """Hear what workers do, while a node shows it."""
        with self._changing:
            running = self.running
            if not self._asked or running is None or self.phase != "running" or self._listener is not None:
                return
            if running.cluster is not self._places.alone:
                self._listener = self.progress.listener(running.cluster, running.record.job_id)
                self._listener.__enter__()

    def _listen_no_more(self) -> None:
        with self._changing:
            listener, self._listener, self.phase = self._listener, None, "starting"
        if listener is not None:
            listener.__exit__()

    def _open_spool(self, entered: Entered) -> Spool:
        record, resumed = entered.queued.record, entered.queued.resumed
        if self._spool is None:
            folder = spool_folder(self._places.folder, record.job_id)
            self._spool = resumed.spool if resumed else Spool(folder, SpoolManifest(record.job_id, record.resume_key))
        return self._spool

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

    def _begin(self, entered: Entered) -> RunningJob:
        cluster, queued, spool, record = entered.cluster, entered.queued, self._open_spool(entered), entered.queued.record
        place = SpoolPlace(cluster.settings.host_name, str(spool.folder.absolute()), str(self._places.folder.absolute()))
        try:
            cluster.jobs.note_spool(record.job_id, place)
        except (ClusterUnavailable, redis.RedisError) as error:  # the collector waits for a table that comes back
            log.warning("job %s: the table is not told where its spool lies: %s", record.job_id, error)
        settings, tell, ensure = cluster.settings, self.progress, partial(queued.inputs.ensure, record.input_files)
        tiles = TileLimits(blob_bytes=settings.blob_limit_bytes, workers=CapableWorkers(cluster, record), on_planned=tell.tiles_planned)
        arrivals = self._arrivals = self._arrivals or arrivals_of(self.accepted, self._places, queued, spool)
        if self._asked:
            arrivals.begin()

        def item_done(index: int, result: ItemResult) -> None:
            tell.item_done(index, result)
            arrivals.add(index)

        options = CollectorOptions(item_done, ensure, blob_away_s=settings.blob_away_s, tiles=tiles)
        return RunningJob(cluster, record, queued.plan, spool, Collector(record, cluster.jobs, cluster.blobs, spool, options))

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
        with self._changing:
            entered = self._entered
            if self._cleared or entered is None or not self._done.is_set():
                return
            self._cleared, self.running = True, None
        spool = self._open_spool(entered) if self._spool is not None or entered.queued.resumed else None
        if self._arrivals is not None:
            self._arrivals.close()
        keep = self._keep or (self._deleted and entered.queued.resumed is not None)  # a deleted one leaves what another one left before it
        if spool is not None and keep and spool.items():
            spool.mark_ended()
            spool.close()
        elif spool is not None:
            spool.remove()
        remove_ended(self._places.folder / SPOOL_FOLDER, "" if self._keep or self._deleted else entered.queued.record.resume_key)


def is_cancelled(error: Exception | None) -> bool:
    """Whether a job ended because it was told to."""
    return isinstance(error, (JobCancelled, RunInterrupted))
