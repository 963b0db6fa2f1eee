"""Goes on where a job of the same content stopped: its master died, and its spool lies in the output folder."""
from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distributed_comfy.collector.adopt import adopt_spool, find_left
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest, references, spool_folder
from distributed_comfy.errors import BlobMissing, FrameError, JobStateInvalid, JobUnknown
from distributed_comfy.messages import JobRecord
from distributed_comfy.state.jobs import FinishedItem
from tasks.cluster import Cluster

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What a new job has of the one that stopped."""

    job_id: str
    """The job that stopped."""
    spool: Spool
    """Open, and the new job's."""
    items: int
    """Of the new job, as it is submitted."""

    @property
    def finished(self) -> tuple[FinishedItem, ...]:
        """The items that need not run again; tiles follow when they are entered."""
        here = [index for index in self.spool.items() if index < self.items]
        return tuple(FinishedItem(index, self.spool.claim_id(index) or "", self.spool.result(index)) for index in here)


def resume(cluster: Cluster, record: JobRecord, out: Path) -> Resumed | None:
    """Take over what an unfinished job with the same resume key left in ``out``; None where there is nothing, or somebody collects it.

    What the table still has of that job's finished items is fetched as well; then it is cancelled, because its work goes on in this one.
    """
    for left, manifest in find_left(out / SPOOL_FOLDER, record.resume_key):
        old = manifest.job_id
        if not _deserted(cluster, old, left):
            continue
        spool = adopt_spool(left, spool_folder(out, record.job_id), SpoolManifest(record.job_id, record.resume_key))
        if spool is None:
            continue
        try:
            _cancel(cluster, old, record.job_id)  # first, so that nothing is finished there after the look at what is finished
            _fetch_rest(cluster, old, spool)
            cluster.jobs.settle(old)
            cluster.blobs.drop_job(old)
        except BaseException:
            spool.close()
            raise
        log.info("job %s goes on where job %s stopped: %d of %d items are here", record.job_id, old, len(spool.items()), record.items)
        return Resumed(old, spool, record.items)
    return None


def _deserted(cluster: Cluster, job_id: str, left: Path) -> bool:
    """Whether nobody collects the job.

    The lease of an owner that died runs on for a moment.  One of this host that collects into this very spool has it locked while it lives,
    so there the lock alone decides.
    """
    owner = cluster.jobs.owner(job_id)
    if not owner:
        return True
    place = cluster.jobs.spool(job_id)
    here = owner.startswith(f"{cluster.settings.host_name}-")
    return here and place is not None and Path(place.folder) == left.absolute()


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
