"""Goes on where a job of the same content stopped: its master died, and its spool lies in the output folder."""
from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from distributed_comfy.collector.adopt import adopt_spool, find_left
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest, references
from distributed_comfy.errors import BlobMissing, FrameError, JobStateInvalid, JobUnknown, MessageVersionUnknown, SpoolUnusable
from distributed_comfy.messages import JobRecord, dump
from distributed_comfy.state.jobs import FinishedItem
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_GOES_ON = ("pending", "running", "parked", "done")
"""States of a job that a new owner can bring to its end; one that a person has paused is not taken for deserted."""


@dataclass(frozen=True)
class Resumed:
    """What a job has of the one that stopped."""

    job_id: str
    """The job that stopped."""
    spool: Spool
    """Open, and the job's that goes on."""
    items: int
    """Of that job, as it is submitted."""
    record: JobRecord | None = None
    """The job that stopped, where it goes on itself and its owner lease is ours; None where a new one takes its place."""

    @property
    def finished(self) -> tuple[FinishedItem, ...]:
        """The items that need not run again; tiles follow when they are entered."""
        here = [index for index in self.spool.items() if index < self.items]
        return tuple(FinishedItem(index, self.spool.claim_id(index) or "", self.spool.result(index)) for index in here)


def resume(cluster: Cluster, record: JobRecord, out: Path, owner: str, *, itself: bool = True) -> Resumed | None:
    """Go on with what an unfinished job of the same resume key left in ``out``; None where there is nothing, or somebody collects it.

    A job that the table still has goes on itself, under its new owner: what its workers have finished is fetched, what they run is waited
    for.  Where it has ended, is of another sort (another priority, say) or is known no more, its finished items are for the new job;
    what the table still has of them is fetched, and then it is cancelled.

    Args:
        cluster: open connections.
        record: the new job; its id is its own already.
        out: output folder.
        owner: who collects from now on.
        itself: False where the old job cannot go on itself, because more than its record holds belongs to whoever submitted it.
    """
    for left, manifest in find_left(out / SPOOL_FOLDER, record.resume_key):
        last_owner = _last_owner(cluster, manifest.job_id, left)
        if last_owner is None:
            continue
        change = _Change(cluster, manifest.job_id, last_owner, owner)
        resumed = (_take_over(change, record, left, manifest) if itself else None) or _succeed(change, record, left)
        if resumed is not None:
            return resumed
    return None


@dataclass(frozen=True)
class _Change:
    """Of a job's owner."""

    cluster: Cluster
    job_id: str
    last_owner: str
    """Empty where its lease has run out."""
    owner: str
    """From now on."""

    def own(self) -> bool:
        """Get the owner lease, once the open spool shows that its last owner is dead; False where somebody was faster or no job is."""
        if self.last_owner:
            self.cluster.jobs.disown(self.job_id, self.last_owner)
        return self.cluster.jobs.own(self.job_id, self.owner)


def _last_owner(cluster: Cluster, job_id: str, left: Path) -> str | None:
    """Who collected the job, or nobody; None where somebody may still do so.

    The lease of an owner that died runs on for a moment.  One of this host that collects into this very spool has it locked while it lives,
    so there the lock alone decides.
    """
    owner = cluster.jobs.owner(job_id)
    if not owner:
        return ""
    place = cluster.jobs.spool(job_id)
    here = owner.startswith(f"{cluster.settings.host_name}-")
    return owner if here and place is not None and Path(place.folder) == left.absolute() else None


def _take_over(change: _Change, record: JobRecord, left: Path, manifest: SpoolManifest) -> Resumed | None:
    """Become the owner of the job itself; None where it cannot go on, or somebody was faster."""
    if not _goes_on(change, record):
        return None
    try:
        spool = Spool(left, manifest)
    except SpoolUnusable:
        return None
    try:
        if change.own() and _goes_on(change, record):  # it may have ended before it had an owner again
            log.info("job %s goes on: %d of %d items are here", change.job_id, len(spool.items()), record.items)
            return Resumed(change.job_id, spool, record.items, change.cluster.jobs.record(change.job_id))
    except BaseException:
        spool.close()
        raise
    spool.close()
    return None


def _goes_on(change: _Change, record: JobRecord) -> bool:
    """Whether the table has the job, in a state to go on from, and the new one would be the same in all but its id."""
    jobs = change.cluster.jobs
    try:
        return jobs.job_state(change.job_id).state in _GOES_ON and _content(jobs.record(change.job_id)) == _content(record)
    except (JobUnknown, MessageVersionUnknown):
        return False


def _content(record: JobRecord) -> str:
    """All but what holds the job's id; of its input files the resume key knows the content."""
    return dump(replace(record, job_id="", input_files=()))


def _succeed(change: _Change, record: JobRecord, left: Path) -> Resumed | None:
    """Take the finished items of a job for a new one, and cancel it; None where somebody uses its spool."""
    spool = adopt_spool(left, left.with_name(record.job_id), SpoolManifest(record.job_id, record.resume_key))
    if spool is None:
        return None
    cluster, old = change.cluster, change.job_id
    try:
        # Without an owner the reaper would drop its results as soon as it is cancelled.
        if change.own() or not cluster.jobs.owner(old):
            _cancel(cluster, old, record.job_id)  # first, so that nothing is finished there after the look at what is finished
            _fetch_rest(cluster, old, spool)
            cluster.jobs.settle(old)
            cluster.blobs.drop_job(old)
            cluster.jobs.disown(old, change.owner)
    except BaseException:
        spool.close()
        raise
    log.info("job %s goes on where job %s stopped: %d of %d items are here", record.job_id, old, len(spool.items()), record.items)
    return Resumed(old, spool, record.items)


def _fetch_rest(cluster: Cluster, job_id: str, spool: Spool) -> None:
    """Finished results that the last owner had not fetched, as far as their blobs are there."""
    for index, item in cluster.jobs.item_states(job_id).items():
        found = cluster.jobs.result(job_id, index) if item.state == "done" and not spool.has(index) else None
        if found is None:
            continue
        try:
            spool.add(index, *found, cluster.blobs)
        except (BlobMissing, FrameError) as error:
            log.info("job %s item %d runs again: %s", job_id, index, error)
            continue
        cluster.blobs.unlink([ref.blob for ref in references(found[1])])


def _cancel(cluster: Cluster, job_id: str, successor: str) -> None:
    with suppress(JobUnknown, JobStateInvalid):  # it went with its Redis, or has ended
        if not cluster.jobs.job_state(job_id).ended:
            cluster.jobs.cancel(job_id, f"goes on as job {successor}")
