"""The table of truth in plain Python: what jobs, items and workers must be after each transition, without any index."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MIB = 2**20


@dataclass
class Item:
    """One row."""

    state: str = "pending"
    claim: str = ""
    worker: str = ""
    attempts: dict[str, int] = field(default_factory=dict)
    size: int = 0
    fetched: bool = False

    def free(self, state: str) -> None:
        """Nobody has it any more."""
        self.state, self.claim, self.worker = state, "", ""


@dataclass
class ModelJob:
    """One job: generated items, perhaps one that prepares, perhaps a last stage (where ``last_needs`` is given), then tiles."""

    name: str
    items: list[Item]
    needs: str
    last_needs: str = ""
    spare: str = ""
    state: str = "active"
    paused: bool = False
    parked: bool = False
    owned: bool = True
    largest: int = 0
    prepare: bool = False
    grows: bool = False
    outer: str = ""
    tiles: int = 0
    tiles_largest: int = 0
    fatal: int = -1
    fed: set[int] = field(default_factory=set)
    """Items that were unblocked."""

    def needs_of(self, index: int) -> str:
        """The node class that an item needs."""
        return self.last_needs if self.is_last(index) else self.needs

    def is_last(self, index: int) -> bool:
        """True for the last stage."""
        return bool(self.last_needs) and index == len(self.items) - self.tiles - 1

    @property
    def generated(self) -> range:
        """Indexes of the items that come first."""
        return range(len(self.items) - self.tiles - bool(self.last_needs) - self.prepare)

    def is_tile(self, index: int) -> bool:
        """True for what `extend` added."""
        return index >= len(self.items) - self.tiles

    def is_fed(self, index: int) -> bool:
        """It gets values when it is unblocked."""
        return index not in self.generated and (len(self.generated) > 0 or not self.prepare or index > 0)

    @property
    def made(self) -> bool:
        """The image to upscale is there."""
        return bool(self.tiles) or (self.prepare and self.items[len(self.generated)].state == "done")

    @property
    def expected(self) -> tuple[int, bool]:
        """Size of the largest result of the kind that runs now, and whether there was one."""
        if self.tiles:
            return self.tiles_largest, any(item.state == "done" for item in self.items[-self.tiles :])
        return self.largest, any(item.state == "done" for item in self.items)

    def unblocked(self, indexes: Iterable[int]) -> None:
        """Those that are blocked may run."""
        for index in indexes:
            if self.items[index].state == "blocked":
                self.items[index].free("pending")
                self.fed.add(index)


    def on_offer(self) -> bool:
        """Hands out items, if it has any."""
        return self.state == "active" and not self.paused and not self.parked

    def in_flight(self) -> bool:
        """Something of it runs or waits to be fetched."""
        return any(item.state == "running" or (item.state == "done" and item.size and not item.fetched) for item in self.items)

    def end(self, state: str) -> None:
        """Nothing of it runs any more."""
        self.state = state
        for item in self.items:
            if item.state == "running":
                item.state = "stopped"


@dataclass
class ModelWorker:
    """One registered name."""

    name: str
    classes: frozenset[str]
    incarnation: str
    alive: bool = True
    drained: bool = False
    down: bool = False
    compared: bool = True
    """Its capability was compared with all that jobs needed when it registered, and stays so, whoever dies over another job."""
    barred: set[tuple[str, str]] = field(default_factory=set)
    """(job, node class)."""
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    """What its process believes to have: claim id -> job, index."""
    missed: set[str] = field(default_factory=set)
    """Claims that the table knows and that the last sign of life did not hold."""


class Model:
    """Jobs and workers, and what each transition makes of them."""

    def __init__(self, max_attempts: int, slots: int) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.workers: dict[str, ModelWorker] = {}
        self._max_attempts = max_attempts
        self._slots = slots

    def running(self, worker: str) -> list[tuple[ModelJob, int]]:
        """What the table says the worker has."""
        return [(job, index) for job, index in self._all() if job.items[index].state == "running" and job.items[index].worker == worker]

    def renewed(self, worker: ModelWorker) -> set[str]:
        """A sign of life; the claims among those held that the table does not know."""
        running = self.running(worker.name)
        for job, index in running:
            item = job.items[index]
            if item.claim in worker.held:
                worker.missed.discard(item.claim)
            elif item.claim in worker.missed:
                item.free("pending")
            else:
                worker.missed.add(item.claim)
        worker.alive = True
        return set(worker.held) - {job.items[index].claim for job, index in running}

    def may_claim(self, worker: ModelWorker) -> bool:
        """It has a free slot and is not told to stop."""
        return not worker.drained and not worker.down and len(self.running(worker.name)) < self._slots

    def serves(self, worker: ModelWorker, job: ModelJob, index: int) -> bool:
        """The worker can run the item."""
        needs = job.needs_of(index)
        return needs in worker.classes and (job.name, needs) not in worker.barred

    def certain(self, worker: ModelWorker) -> list[tuple[str, int]]:
        """Items that no byte cap can keep from this worker."""
        return [
            (job.name, index)
            for job, index in self._all()
            if job.on_offer() and job.items[index].state == "pending" and self.serves(worker, job, index)
            if job.is_last(index) or not job.in_flight() or self._known_to_be_small(job)
        ]

    def _known_to_be_small(self, job: ModelJob) -> bool:
        return job.expected == (0, True)

    def claimed(self, job: str, index: int, claim: str, worker: str) -> None:
        item = self.jobs[job].items[index]
        item.state, item.claim, item.worker = "running", claim, worker

    def valid(self, job: str, index: int, claim: str) -> bool:
        """The claim is the one that runs the item."""
        found = self.jobs.get(job)  # a server that came back as it was knows nothing of later jobs and tiles
        if found is None or index >= len(found.items):
            return False
        return found.state == "active" and found.items[index].state == "running" and found.items[index].claim == claim

    def completed(self, job_name: str, index: int, size: int) -> None:
        job = self.jobs[job_name]
        item = job.items[index]
        item.state, item.size, item.fetched = "done", size, False
        if index >= len(job.items) - job.tiles:
            job.tiles_largest = max(job.tiles_largest, size)
        else:
            job.largest = max(job.largest, size)
        self._end_if_over(job)

    def extended(self, job: ModelJob, added: list[Item], final: bool) -> None:
        """Tiles come to a job that grows."""
        job.items += added
        job.tiles += len(added)
        job.tiles_largest = max([job.tiles_largest, *(item.size for item in added)])
        job.grows = job.grows and not final
        self._end_if_over(job)

    def restored(self, job: ModelJob, finished: Iterable[tuple[int, str, int]]) -> None:
        """The owner has (index, claim, size) already; who runs one of them is told to stop."""
        for index, claim, size in finished:
            item = job.items[index]
            if item.state in ("done", "failed"):
                continue
            item.state, item.claim, item.size, item.fetched = "done", claim, size, True
            if job.is_tile(index):
                job.tiles_largest = max(job.tiles_largest, size)
            else:
                job.largest = max(job.largest, size)
        self._end_if_over(job)

    def _end_if_over(self, job: ModelJob) -> None:
        if not job.grows and all(other.state in ("done", "failed") for other in job.items):
            self.ended(job, "done")

    def ended(self, job: ModelJob, state: str) -> None:
        job.end(state)
        for worker in self.workers.values():
            worker.barred = {(name, needs) for name, needs in worker.barred if name != job.name}

    def failed(self, job: ModelJob, index: int, claim: str, worker: str, *, for_all: bool = False) -> None:
        item = job.items[index]
        item.state, item.claim, item.worker = "failed", claim, worker
        left = any(job.items[other].state != "failed" for other in job.generated)
        if job.spare and left and not for_all and index in job.generated and not (job.spare == "others" and index == 0):
            self._end_if_over(job)
        else:
            job.fatal = index
            self.ended(job, "failed")

    def lost(self, job: ModelJob, index: int, error: str) -> bool:
        """The item's execution failed for this reason; False where that was its last attempt and the job failed."""
        item = job.items[index]
        item.attempts[error] = item.attempts.get(error, 0) + 1
        if item.attempts[error] >= self._max_attempts:
            self.failed(job, index, item.claim, item.worker)
            return False
        item.free("pending" if item.attempts[error] == 1 or error == "worker_lost" else "waiting")
        return True

    def lacks(self, worker: ModelWorker, job: ModelJob, index: int) -> bool:
        """The worker is barred; False where nobody is left and the job failed."""
        worker.barred.add((job.name, job.needs_of(index)))
        if self.others_may(worker, job, index):
            job.items[index].free("pending")
            return True
        self.failed(job, index, job.items[index].claim, worker.name, for_all=True)
        return False

    def others_may(self, worker: ModelWorker, job: ModelJob, index: int) -> bool:
        """Whether somebody else is there who may run the item."""
        return job.outer == "runs" or any(other is not worker and self.serves(other, job, index) for other in self.workers.values())

    def retried(self, job: ModelJob) -> None:
        job.state, job.paused, job.parked = "active", False, False
        gaps = {index for index in job.generated if job.spare and job.items[index].state == "failed"}
        stay = {index for index in gaps if job.made and index != job.fatal}
        fed = (job.prepare, len(job.generated)), (bool(job.last_needs), len(job.generated) + job.prepare)
        for item in [job.items[index] for there, index in fed if there and gaps - stay]:
            if item.state != "done":
                item.free("blocked")
                item.attempts = {}
        for index, item in enumerate(job.items):
            if job.is_tile(index) and item.state not in ("done", "blocked"):
                item.free("blocked")
                item.attempts = {}
            elif item.state in ("failed", "stopped") and index not in stay:
                item.free("pending")
                item.attempts = {}

    def reopened(self, job: ModelJob, index: int) -> None:
        item = job.items[index]
        if job.state == "done":
            job.state = "active"
        item.attempts["blob_missing"] = item.attempts.get("blob_missing", 0) + 1
        item.size, item.fetched = 0, False
        if item.attempts["blob_missing"] >= self._max_attempts:
            self.failed(job, index, item.claim, "")
        else:
            item.free("blocked" if job.is_tile(index) or (job.is_fed(index) and index not in job.fed) else "pending")

    def ticked(self, backoff_over: bool) -> None:
        """What a tick of the reaper does beside burying workers."""
        for job in self.jobs.values():
            for item in job.items:
                if backoff_over and item.state == "waiting":
                    item.free("pending")
                if job.state in ("failed", "cancelled") and not job.owned and item.state == "done":
                    item.fetched = True  # nobody will; a job that is done waits for an owner
            if job.state == "active":
                job.parked = not job.owned

    def _all(self) -> Iterator[tuple[ModelJob, int]]:
        for job in self.jobs.values():
            for index in range(len(job.items)):
                yield job, index
