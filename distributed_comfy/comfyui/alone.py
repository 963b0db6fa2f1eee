"""A cluster of this ComfyUI alone, in its memory: for jobs of prompts while there is no Redis, so that they are the same jobs as ever.

It has what `submit_prompt`, the collector and `Participation` use of a cluster, and no worker but this ComfyUI.
"""
from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from distributed_comfy.collector.memory_table import MemoryJobTable
from distributed_comfy.errors import DistributedComfyError, JobUnknown, OnlyWorkersHave
from distributed_comfy.messages import Capability, ItemResult, ItemSpec, JobRecord, Prompt
from distributed_comfy.settings import Settings
from distributed_comfy.state.jobs import FinishedItem, Submission
from distributed_comfy.state.records import Claim, ItemState, JobEvent, JobState, SpoolPlace, WorkerFacts
from distributed_comfy.state.specs import pack_specs
from distributed_comfy.state.workers import GiveBackReason, Renewal
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from tasks.cluster import Cluster


@dataclass
class _AloneJob:
    table: MemoryJobTable
    prompts: dict[str, Prompt]
    templates: list[str]
    packed: dict[int, str] = field(default_factory=dict)

    def add(self, specs: Sequence[ItemSpec]) -> None:
        """Specs as the table of a cluster keeps them."""
        self.templates, packed = pack_specs(specs, self.templates)
        self.packed |= dict(packed)


class AloneJobs:
    """The jobs; see `state.jobs.JobTable` for what each method does."""

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._jobs: dict[str, _AloneJob] = {}
        self._lock = threading.Lock()

    def submit(self, submission: Submission, owner: str) -> None:
        """Enter a job; the same job id again changes nothing."""
        record = submission.record
        fed = [index for index in (record.last_index, record.prepare_index if record.generated else None) if index is not None]
        table = MemoryJobTable(len(submission.specs), max_attempts=self._max_attempts, spare=bool(record.spare), grows=record.grows)
        for index in fed:
            table.block(index)
        table.restore(record.job_id, submission.finished)
        job = _AloneJob(table, dict(submission.prompts), [])
        job.add(submission.specs)
        with self._lock:
            self._jobs.setdefault(record.job_id, job)

    def settle(self, job_id: str) -> None:
        """Forget an ended job."""
        with self._lock:
            self._jobs.pop(job_id, None)

    def owner(self, job_id: str) -> str:
        """Nobody holds a lease here."""
        return ""

    def own(self, job_id: str, owner: str) -> bool:
        """Nobody else could collect a job of this process."""
        return True

    def disown(self, job_id: str, owner: str) -> None:
        """There is no lease to give back."""

    def record(self, job_id: str) -> JobRecord:
        """A job of this process is not taken over: it ends with its prompt.

        Raises:
            JobUnknown: always.
        """
        raise JobUnknown(job_id=job_id)

    def note_spool(self, job_id: str, spool: SpoolPlace) -> None:
        """Nobody else asks for it."""

    def cancel(self, job_id: str, reason: str) -> None:
        """Stop everything of the job."""
        self.job(job_id).table.end("cancelled", reason=reason)

    def prompts(self, job_id: str) -> tuple[dict[str, Prompt], list[str]]:
        """The job's prompts by hash, and its spec templates."""
        job = self.job(job_id)
        return job.prompts, job.templates

    def feed(self, job_id: str, index: int) -> str:
        """The feed of an item."""
        return self.job(job_id).table.feeds.get(index, "")

    def extend(self, job_id: str, specs: Sequence[ItemSpec], *, finished: Sequence[FinishedItem] = (), final: bool = False) -> bool:
        """Add items to a job that grows."""
        job = self.job(job_id)
        job.add(specs)
        return job.table.extend(job_id, specs, finished=finished, final=final)

    def wait_events(self, job_id: str, cursor: str, block_s: float) -> tuple[str, list[JobEvent]]:
        """Events after ``cursor``."""
        return self.job(job_id).table.wait_events(job_id, cursor, block_s)

    def job_state(self, job_id: str) -> JobState:
        """The truth about a job."""
        return self.job(job_id).table.job_state(job_id)

    def item_states(self, job_id: str) -> dict[int, ItemState]:
        """The truth about every item; nothing of a job that never was here."""
        job = self._jobs.get(job_id)
        return job.table.item_states(job_id) if job else {}

    def result(self, job_id: str, index: int) -> tuple[str, ItemResult] | None:
        """Claim id and result of a done item."""
        return self.job(job_id).table.result(job_id, index)

    def mark_fetched(self, job_id: str, index: int, claim_id: str) -> None:
        """The item's blobs are unlinked."""
        self.job(job_id).table.mark_fetched(job_id, index, claim_id)

    def reopen(self, job_id: str, index: int, claim_id: str) -> bool:
        """Run an item again."""
        return self.job(job_id).table.reopen(job_id, index, claim_id)

    def restore(self, job_id: str, finished: Sequence[FinishedItem]) -> bool:
        """These items are done."""
        return self.job(job_id).table.restore(job_id, finished)

    def unblock(self, job_id: str, ready: Sequence[tuple[int, str]]) -> bool:
        """Make items claimable."""
        return self.job(job_id).table.unblock(job_id, ready)

    def job(self, job_id: str) -> _AloneJob:
        """
        Raises:
            JobUnknown: no such job.
        """
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise JobUnknown(job_id=job_id)
        return job


class AloneWorkers:
    """This ComfyUI's side of the table; see `state.workers.WorkerTable`."""

    def __init__(self, jobs: AloneJobs, max_attempts: int) -> None:
        self._jobs = jobs
        self._max_attempts = max_attempts

    def register_guest(self, facts: WorkerFacts, incarnation: str) -> None:
        """It is known."""

    def renew(self, name: str, incarnation: str, held: Sequence[str]) -> Renewal:
        """It lives: this is its process."""
        return Renewal(alive=True)

    def claim(self, name: str, incarnation: str, claim_id: str, job_id: str, leaves: Collection[int] = ()) -> Claim | None:
        """The first item of the job that can run; None where there is none now.  None is left to workers: giving it back ends the job."""
        try:
            job = self._jobs.job(job_id)
        except JobUnknown:  # it has just ended
            return None
        for index, state in job.table.item_states(job_id).items():
            if state.state == "pending" and job.table.claim(index, claim_id, name):
                return Claim(claim_id, job_id, index, job.packed[index], state.attempts + 1)
        return None

    def complete(self, name: str, incarnation: str, claim: Claim, result: ItemResult) -> bool:
        """Enter the result; False where the job is over."""
        try:
            return self._jobs.job(claim.job_id).table.complete(claim.index, claim.claim_id, result)
        except JobUnknown:
            return False

    def barred(self, job_id: str) -> frozenset[str]:
        """There are no workers."""
        return frozenset()

    def give_back(
        self, name: str, incarnation: str, claim: Claim, how: GiveBackReason, error: DistributedComfyError | None = None
    ) -> str:
        """End the claim without a result: what this ComfyUI does not do, nobody does."""
        try:
            table = self._jobs.job(claim.job_id).table
        except JobUnknown:
            return "lost"
        if how == "retry" and claim.attempt < self._max_attempts:
            table.lose_worker(claim.index)
            return "ok"
        lacking = error or OnlyWorkersHave(what=f"what item {claim.index} needs")
        table.fail(claim.index, claim.claim_id, {**lacking.to_wire(), "worker": name, "index": claim.index})
        return "failed"


class _NoWorkers:
    def live(self) -> dict[str, Capability]:
        return {}


def open_alone(settings: Settings) -> Cluster:
    """The cluster of this process alone; it has `settings`, `jobs`, `workers`, `matching` and `blobs`, and nothing else of one."""
    jobs = AloneJobs(settings.max_attempts)
    parts: dict[str, Any] = {
        "settings": settings, "jobs": jobs, "workers": AloneWorkers(jobs, settings.max_attempts), "matching": _NoWorkers(),
        "blobs": MemoryBlobStore(chunk_bytes=settings.chunk_bytes, ttl_s=settings.blob_ttl_s),
    }  # fmt: skip
    return cast(Cluster, SimpleNamespace(**parts))
