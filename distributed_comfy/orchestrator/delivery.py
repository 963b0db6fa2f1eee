"""Brings one job home: its spool, its files in the user's folder, and what became of every item."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.naming import FolderNames
from distributed_comfy.collector.save import ImageSaver, PictureMetadata, SavedFile, SavedImage, save_files
from distributed_comfy.collector.spool import Spool, SpoolManifest
from distributed_comfy.errors import OutputUnwritable
from distributed_comfy.messages import ItemResult, JobRecord
from tasks.cluster import Cluster

SPOOL_FOLDER = ".distributed-comfy"
"""Below the output folder: one spool per unfinished job."""


@dataclass(frozen=True)
class Delivery:
    """What a job left in the user's folder."""

    job_id: str
    images: Sequence[SavedImage] = ()
    """Collected images that we saved, in order."""
    files: Sequence[SavedFile] = ()
    """Files of output nodes, in order of arrival."""
    results: dict[int, ItemResult] = field(default_factory=dict)
    """Every item's result."""
    seconds: float = 0.0
    """Wall time from submission to the last file."""


@dataclass(frozen=True)
class DeliveryOptions:
    """Where a job goes and who is told."""

    out: Path
    on_item: Callable[[int, ItemResult], None] = lambda index, result: None
    """Called for each item that has arrived."""
    ensure_inputs: Callable[[], None] = lambda: None
    """Stores input files again that the blob store lost."""


class Courier:
    """Collects a job and saves what arrives while the rest still runs.

    Args:
        cluster: open connections.
        record: the job.
        options: folder and callbacks.
    """

    def __init__(self, cluster: Cluster, record: JobRecord, options: DeliveryOptions) -> None:
        self._cluster = cluster
        self._record = record
        self._options = options
        self._files: list[SavedFile] = []
        self._results: dict[int, ItemResult] = {}
        self._images: list[SavedImage] = []
        self._began = time.monotonic()

    def deliver(self) -> Delivery:
        """Collect until the job ends; finished images are saved even where it fails.

        Raises:
            JobFailed, JobCancelled, ItemsMissing, SizesDiffer: see `Collector.run`; `delivery` tells what was saved all the same.
            OutputUnwritable: the folder cannot be written; what is not saved stays in the spool.
        """
        record, jobs = self._record, self._cluster.jobs
        prepare_folder(self._options.out)
        spool = Spool(self._options.out / SPOOL_FOLDER / record.job_id, SpoolManifest(record.job_id, record.resume_key))
        names = FolderNames(self._options.out)
        keep = True
        try:
            with ImageSaver(spool, self._collectors_to_save(), self._options.out, metadata=self._metadata()) as saver:

                def on_item(index: int, result: ItemResult) -> None:
                    saver.add(index)
                    self._files += save_files(spool, index, names)
                    self._results[index] = result
                    self._options.on_item(index, result)

                options = CollectorOptions(on_item=on_item, ensure_inputs=self._options.ensure_inputs)
                try:
                    Collector(record, jobs, self._cluster.blobs, spool, options).run()
                finally:
                    self._images = saver.close()
            keep = False
        except OutputUnwritable:
            raise
        except Exception:
            keep = False
            raise
        finally:
            spool.close()
            if not keep:
                self._clear(spool)
        return self.delivery

    @property
    def delivery(self) -> Delivery:
        """What has been saved so far."""
        return Delivery(self._record.job_id, self._images, self._files, self._results, time.monotonic() - self._began)

    def _collectors_to_save(self) -> list[str]:
        return [plan.node_id for plan in self._record.collectors if not plan.saved and "images" in plan.slots]

    def _metadata(self) -> PictureMetadata:
        prompts, _ = self._cluster.jobs.prompts(self._record.job_id)
        specs = self._cluster.jobs.specs(self._record.job_id)
        seeds = tuple(specs[index].seed for index in sorted(specs))
        return PictureMetadata(prompts[self._record.original_prompt_hash], self._record.extra_pnginfo, seeds)

    def _clear(self, spool: Spool) -> None:
        """Nothing of an ended job stays in the blob store or the spool."""
        spool.remove()
        self._cluster.blobs.drop_job(self._record.job_id)
        self._cluster.jobs.settle(self._record.job_id)
        parent = self._options.out / SPOOL_FOLDER
        if parent.exists() and not any(parent.iterdir()):
            parent.rmdir()


def prepare_folder(out: Path) -> None:
    """Make the output folder, and find out now and not after the work whether it can be written.

    Raises:
        OutputUnwritable: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{SPOOL_FOLDER}-{time.monotonic_ns()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputUnwritable(path=str(out), reason=error.strerror or str(error)) from error
