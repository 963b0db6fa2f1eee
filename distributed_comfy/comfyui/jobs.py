"""The jobs of the prompts that this ComfyUI has accepted, by prompt."""
from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from distributed_comfy.collector.adopt import mark_left, remove_ended
from distributed_comfy.collector.spool import SPOOL_FOLDER
from distributed_comfy.comfyui.accepted import AcceptedPrompt, Place
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.job_entry import JobPlaces
from distributed_comfy.comfyui.keeping import AWAY_S
from distributed_comfy.comfyui.master_job import MasterJob
from distributed_comfy.comfyui.queue_watch import Ending, QueueWatch
from distributed_comfy.errors import DistributedComfyError
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long the end of ComfyUI waits for its jobs."""
REST_S = 5.0
"""How long it waits for the step that its sampler is in."""
REST_LOOK_S = 0.05
REMEMBERED = 256
"""Jobs that are over."""
WAITING_LOOK_S = 1.0
"""How often the table is asked whether jobs that are not collected yet have results."""
MOST_COLLECTED = 32
"""Jobs that are collected at the same time; each has threads of its own, and more than there are workers is not needed."""
INTAKE_S = 5.0
"""How long a node waits for prompts that are just being accepted: its own may be one of them."""


class MasterJobs:
    """One per process; safe to use from several threads.

    Args:
        host: this ComfyUI.
        places: shared by all jobs.
        on_end: called in a thread of its own when the prompt of a job is over.
    """

    def __init__(self, host: ComfyHost, places: JobPlaces, on_end: Callable[[MasterJob], None]) -> None:
        self._host = host
        self._on_end = on_end
        self._places = places
        self._jobs: dict[Place, MasterJob] = {}
        self.closed = threading.Event()
        """Set once this ComfyUI ends: no node gets anything more."""
        self._lock = threading.Lock()
        self._latest: AcceptedPrompt | None = None
        """The prompt that was accepted last, unless it has failed or gone: ComfyUI has its results, or will have them."""
        self._over: OrderedDict[str, str] = OrderedDict()
        """Jobs that are over -> their prompts, for whoever looks for what they saved."""
        self._intakes: set[int] = set()
        """Prompts that ComfyUI is being asked to accept, by number."""
        self._numbers = itertools.count()
        self._intake_over = threading.Condition()
        self.watch = QueueWatch(host, self._end, self._cached, self._interrupt)
        threading.Thread(target=self._sweep, name="distributed-comfy spools", daemon=True).start()
        threading.Thread(target=self._fetch_early, name="distributed-comfy waiting jobs", daemon=True).start()

    def accept(self, accepted: AcceptedPrompt) -> MasterJob | None:
        """Queue the prompt's job; None where no node of it wants one.

        One that is like the one before is queued only when a node asks: ComfyUI will take all of it from its cache.
        """
        if not accepted.job_nodes:
            return None
        job = MasterJob(accepted, self._places)
        with self._lock:
            before = self._jobs.get(accepted.place)
            self._jobs[accepted.place] = job
            deferred = self._latest is not None and self._latest.content == accepted.content
            self._latest = accepted
        if before is not None:  # a client chose number and id, and that prompt has just ended
            before.end("gone")
        self.watch.follow(accepted.place)
        if not deferred:
            self._places.lanes.soon(job.enter)
        return job

    @contextmanager
    def intake(self) -> Iterator[None]:
        """While it lasts ComfyUI accepts a prompt: it may run that before `accept` is called."""
        number = next(self._numbers)
        with self._intake_over:
            self._intakes.add(number)
        try:
            yield
        finally:
            with self._intake_over:
                self._intakes.discard(number)
                self._intake_over.notify_all()

    def wait_for_intakes(self) -> None:
        """Until the prompts that are being accepted now have their jobs."""
        with self._intake_over:
            now = set(self._intakes)
            self._intake_over.wait_for(lambda: not now & self._intakes, INTAKE_S)

    def others_come_between(self) -> None:
        """ComfyUI has accepted a prompt of another sort: its cache will be of that one."""
        with self._lock:
            self._latest = None

    def of_node(self, node_id: str) -> MasterJob | None:
        """The job that a node of the prompt that runs now belongs to; None where it is to work as if we were not here."""
        prompt_id, _ = self._host.executing()
        job = self._of_running(prompt_id)
        return job if job is not None and node_id in job.accepted.job_nodes else None

    def _of_running(self, prompt_id: str) -> MasterJob | None:
        """The job of the prompt with this id that runs now; another one with the same id may wait."""
        places = self.watch.running(prompt_id)
        with self._lock:
            return next((self._jobs[place] for place in places if place in self._jobs), None)

    def running(self, prompt_id: str | None) -> list[Place]:
        """See `interrupts.Here.running`."""
        return self.watch.running(prompt_id)

    def interrupt(self, places: list[Place]) -> None:
        """See `interrupts.Here.interrupt`: what a node does that does not heed ComfyUI's flag must not keep workers busy."""
        for place in places:
            self._interrupt(place)

    def leave(self, cluster: Cluster) -> None:
        """The session leaves a cluster: so do the jobs that are in it."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.leave(cluster, AWAY_S)

    def close(self) -> None:
        """This ComfyUI ends, and with it all jobs; what servers that do not answer are not told ends with its lease."""
        self.closed.set()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.halt()

        def close_each() -> None:
            for job in jobs:
                job.close()

        closing = threading.Thread(target=close_each, name="distributed-comfy ends its jobs", daemon=True)
        closing.start()
        self._rest()
        closing.join(CLOSE_S)

    def _rest(self) -> None:
        """Let a prompt with a job come to its end: Python aborts where it ends under a thread that torch computes in."""
        with self._lock:
            places = set(self._jobs)
        if places.isdisjoint(self.watch.running(None)):
            return
        self._host.model_management.interrupt_current_processing()
        give_up_at = time.monotonic() + REST_S
        while time.monotonic() < give_up_at and self.watch.running(None):
            time.sleep(REST_LOOK_S)

    def has_job(self, job_id: str) -> bool:
        """Whether a prompt that is not over waits for a job of the table."""
        with self._lock:
            return bool(job_id) and any(job.job_id == job_id for job in self._jobs.values())

    def ids(self, *, over: bool = False) -> list[str]:
        """Ids of the jobs in the table whose prompts are not over; with ``over`` also those that are, for a while."""
        with self._lock:
            return [*(job.job_id for job in self._jobs.values() if job.job_id), *(self._over if over else ())]

    def prompt_of(self, job_id: str, *, over: bool) -> str | None:
        """The prompt of a job; with ``over`` also one that is over, for a while."""
        with self._lock:
            live = next((job.accepted.prompt_id for job in self._jobs.values() if job.job_id == job_id), None)
            return live or (self._over.get(job_id) if over else None)

    def _sweep(self) -> None:
        """What a ComfyUI left that was killed waits for its prompt, but not for ever."""
        spools = self._places.folder / SPOOL_FOLDER
        mark_left(spools)
        remove_ended(spools)

    def _fetch_early(self) -> None:
        """Let a job be collected before its turn where workers have made something of it.

        Workers that cannot run the first jobs run those behind them.  One item of each may always run, whatever lies in the blob store:
        of many that nobody collects it would be full, and the jobs whose turn it is could bring nothing home through it.
        """
        while not self.closed.wait(WAITING_LOOK_S):
            with self._lock:
                jobs = list(self._jobs.values())
            clusters = {id(cluster): cluster for job in jobs if (cluster := job.waits_in) not in (None, self._places.alone)}
            for cluster in clusters.values():
                try:
                    found = cluster.jobs.in_flight()
                except (DistributedComfyError, redis.RedisError) as error:  # who looks after the jobs says so
                    log.debug("nobody knows which jobs have results: %s", error)
                    continue
                room = MOST_COLLECTED - sum(job.phase == "running" for job in jobs)
                for job in [job for job in jobs if job.waits_in is cluster and job.job_id in found][: max(0, room)]:
                    job.collect()

    def _cached(self, prompt_id: str, nodes: frozenset[str]) -> None:
        """ComfyUI has the results of these nodes already: a job that only they would ask for runs in vain."""
        job = self._of_running(prompt_id)
        if job is not None and job.accepted.job_nodes <= nodes:
            job.cancel("ComfyUI has its results in the cache")

    def _interrupt(self, place: Place) -> None:
        with self._lock:
            job = self._jobs.get(place)
        if job is not None:
            job.interrupt()

    def _end(self, place: Place, ending: Ending) -> None:
        with self._lock:
            job = self._jobs.pop(place, None)
            if job is not None and job.job_id:
                remember(self._over, job.job_id, place[1])
            if ending != "success" and self._latest is not None and self._latest.place == place:
                self._latest = None
        if job is not None:
            job.end(ending)
            self._places.lanes.soon(lambda: self._on_end(job))


def remember(over: OrderedDict[str, str], job_id: str, prompt_id: str) -> None:
    """Keep the prompt of a job that is over; the oldest makes room."""
    over[job_id] = prompt_id
    while len(over) > REMEMBERED:
        over.popitem(last=False)
