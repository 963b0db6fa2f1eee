"""Brings one job home: its spool, its files in the user's folder, and what became of every item."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import redis
from numpy.typing import NDArray

from distributed_comfy.collector.adopt import remove_ended
from distributed_comfy.collector.collect import Collector, CollectorOptions
from distributed_comfy.collector.gaps import stand_ins
from distributed_comfy.collector.naming import FolderNames
from distributed_comfy.collector.save import FileMetadata, Prefixes, ResultSaver, SavedFile, SavedValue, save_files
from distributed_comfy.collector.spool import SPOOL_FOLDER, Spool, SpoolManifest, spool_folder
from distributed_comfy.collector.tile_work import TileLimits
from distributed_comfy.errors import (
    BlobsAway,
    ClusterUnavailable,
    DistributedComfyError,
    JobCancelled,
    JobError,
    JobFailed,
    JobLost,
    OutputUnwritable,
    PictureUnsavable,
    RunInterrupted,
    ValueUnsavable,
)
from distributed_comfy.log_lines import subject
from distributed_comfy.messages import FED_KINDS, ItemKind, ItemResult, JobRecord
from distributed_comfy.planning.requirements import matches
from distributed_comfy.state.records import SpoolPlace
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_WORKERS_KEPT_S = 2.0


@dataclass(frozen=True)
class Delivery:
    """What a job left in the user's folder."""

    job_id: str
    out: Path
    collected: Sequence[SavedValue] = ()
    """Collected images, tracks, latents and masks that we saved, in order."""
    files: Sequence[SavedFile] = ()
    """Files of output nodes, in order of arrival."""
    results: Mapping[int, ItemResult] = field(default_factory=dict)
    """Index -> result of each item that has arrived."""
    seeds: Mapping[int, str] = field(default_factory=dict)
    """Index of each item -> its seed in decimal; empty where nothing varies."""
    kinds: Mapping[int, ItemKind] = field(default_factory=dict)
    """What each item is that was known at submission; those behind them are tiles."""
    seconds: float = 0.0
    """Wall time from submission (or from the order to take it over) to the last file."""
    missing: Mapping[int, DistributedComfyError] = field(default_factory=dict)
    """Items that failed for good and that the job went on without, as its prompt or ``--on-missing`` asks, and why."""
    error: DistributedComfyError | None = None
    """Why the job is not complete; None where it is."""
    waiting: bool = False
    """True where the finished items of a failed, cancelled or lost job lie in the folder for a run that goes on with them."""
    early: int = 0
    """How many of `collected` were saved because the last stage, which would have saved what is made of them, did not run."""
    kept: bool = False
    """True where nothing was collected, because the results are kept for Celery; `out` says nothing then."""

    @property
    def images(self) -> list[SavedValue]:
        """Those of `collected` that are images."""
        return [value for value in self.collected if value.slot == "images"]

    def kind(self, index: int) -> ItemKind:
        """What an item is."""
        return self.kinds.get(index, "tile" if self.kinds else "generate")

    @property
    def generated(self) -> int:
        """Items without the last stage and what else is fed with others."""
        return sum(kind not in FED_KINDS for kind in self.kinds.values())

    @property
    def moved_bytes(self) -> int:
        """What the items of this delivery sent: tensors as they travelled, and files."""
        return sum(result.size_bytes for result in self.results.values())

    @property
    def finished(self) -> int:
        """Those of `generated` that have arrived."""
        return sum(self.kind(index) not in FED_KINDS for index in self.results)

    @property
    def paths(self) -> list[Path]:
        """Every file that was saved: what was collected in order, then files of output nodes."""
        return [value.path for value in self.collected] + [file.path for file in self.files]


@dataclass(frozen=True)
class DeliveryOptions:
    """Where a job goes and who is told."""

    out: Path
    on_item: Callable[[int, ItemResult], None] = lambda index, result: None
    """Called for each item that has arrived."""
    ensure_inputs: Callable[[], None] = lambda: None
    """Stores input files again that the blob store lost."""
    on_tiles: Callable[[Sequence[Sequence[int]]], None] = lambda tiles: None
    """Told the numbers of the tiles of each item that an upscale adds, once they are known."""
    on_canvas: Callable[[NDArray[np.uint8]], None] | None = None
    """Given a small picture of an upscale's canvas as it fills, [h, w, 3]; none is made without."""
    prefix: str = "ComfyUI"
    """First part of the names of collected images."""
    spool: Spool | None = None
    """The job's spool where it is open already, with the items of an earlier job; None: in the folder, made if it is not there."""
    keep: bool = True
    """Whether the finished items of a job that fails or is cancelled wait in the folder for a run that goes on with them."""
    began: float | None = None
    """Monotonic time at which the user began to wait; None: now."""


class CapableWorkers:
    """How many live workers can run a job's items; asked again after a while only."""

    def __init__(self, cluster: Cluster, record: JobRecord) -> None:
        self._cluster, self._record = cluster, record
        self._count, self._asked_at = 1, float("-inf")

    def __call__(self) -> int:
        """At least 1; what was found last, where the server does not answer."""
        if time.monotonic() - self._asked_at > _WORKERS_KEPT_S:
            self._asked_at = time.monotonic()
            with suppress(ClusterUnavailable):
                live, need = self._cluster.matching.live().values(), self._record.requirement
                self._count = max(1, sum(need is None or matches(need, found) for found in live))
        return self._count


class Courier:
    """Collects a job and saves what arrives while the rest still runs.

    Args:
        cluster: open connections.
        record: the job.
        options: folder and callbacks.
    Raises:
        OutputUnwritable: the folder cannot be written.
        SpoolUnusable: another process collects this job into the same folder.
    """

    def __init__(self, cluster: Cluster, record: JobRecord, options: DeliveryOptions) -> None:
        self._cluster = cluster
        self._record = record
        self._options = options
        self._files: list[SavedFile] = []
        self._results: dict[int, ItemResult] = {}
        self._began = time.monotonic() if options.began is None else options.began
        if options.spool is None:
            prepare_folder(options.out)
        specs = cluster.jobs.specs(record.job_id)
        self._seeds = {index: spec.seed for index, spec in specs.items()}
        self._kinds = {index: spec.kind for index, spec in specs.items()}
        self._saved_late: list[SavedValue] = []
        self._waiting = self._left = False
        self._metadata = self._read_metadata()
        manifest = SpoolManifest(record.job_id, record.resume_key)
        self._spool = options.spool or Spool(spool_folder(options.out, record.job_id), manifest)
        out = options.out.absolute()
        cluster.jobs.note_spool(record.job_id, SpoolPlace(cluster.settings.host_name, str(self._spool.folder.absolute()), str(out)))
        tiles = TileLimits(
            blob_bytes=cluster.settings.blob_limit_bytes,
            workers=CapableWorkers(cluster, record),
            on_planned=options.on_tiles,
            on_canvas=options.on_canvas,
        )
        collecting = CollectorOptions(
            on_item=self._on_item, ensure_inputs=options.ensure_inputs, tiles=tiles, blob_away_s=cluster.settings.blob_away_s
        )
        self._collector = Collector(record, cluster.jobs, cluster.blobs, self._spool, collecting)
        self._saver = self._saving(self._places_to_save())
        self._names = FolderNames(options.out)

    def deliver(self) -> Delivery:
        """Collect until the job ends; finished images are saved even where it fails.  Called once.

        Raises:
            JobFailed, JobCancelled, JobLost, ItemsMissing, ...: see `Collector.run`; `delivery` tells what was saved all the same.
            OutputUnwritable: what is not saved stays in the spool.
            RunInterrupted: `stop` was called.
        """
        try:
            with subject(self._record.job_id), self._saver:
                try:
                    self._collector.run()
                    self._fill_gaps()
                except CancelledError:
                    raise RunInterrupted(when="before all of the job was here") from None
                finally:
                    self._saver.close()
        except JobError as error:
            self._end_early(error)
            raise
        finally:
            self._spool.close()
        return self.delivery()

    def stop(self) -> None:
        """Let `deliver` end soon, whatever the servers do; from any thread."""
        self._collector.stop()

    def leave(self) -> None:
        """As `stop`, because another process goes on with the job."""
        self._left = True
        self.stop()

    def delivery(self, error: DistributedComfyError | None = None) -> Delivery:
        """What has been saved so far."""
        seconds = time.monotonic() - self._began
        return Delivery(
            self._record.job_id,
            self._options.out,
            sorted([*self._saver.saved, *self._saved_late], key=lambda value: value.index),
            self._files,
            self._results,
            self._seeds,
            self._kinds,
            seconds,
            self._collector.missing,
            error,
            self._waiting,
            len(self._saved_late),
        )

    def clear(self, *, complete: bool) -> None:
        """Nothing of an ended job stays in the blob store, and in the spool only what a run can go on with.

        The files are delivered whatever happens here: what cannot be cleared now is cleared by the reaper or by its expiry.
        """
        try:
            self._cluster.jobs.settle(self._record.job_id)
            self._cluster.blobs.drop_job(self._record.job_id)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("job %s: not cleared from the servers (%s); it expires there by itself", self._record.job_id, error)
        if not self._waiting:
            self._spool.remove()
        remove_ended(self._options.out / SPOOL_FOLDER, self._record.resume_key if complete else "")
        with suppress(OSError):  # another run in this folder has a spool there
            (self._options.out / SPOOL_FOLDER).rmdir()

    def _on_item(self, index: int, result: ItemResult) -> None:
        with subject(self._record.job_id, index):
            self._saver.add(index)
            self._files += save_files(self._spool, index, self._names)
            self._results[index] = result
            self._options.on_item(index, result)

    def _fill_gaps(self) -> None:
        """Where a collector repeats what was good, so do its files."""
        repeating = [plan.node_id for plan in self._record.collectors if plan.on_missing == "repeat"]
        if repeating and self._collector.missing:
            for index, source in stand_ins(self._spool.items(), self._record.generated).items():
                self._saver.stand_in(index, source, repeating)

    def _end_early(self, error: JobError) -> None:
        """Nothing of the job runs any more, or nobody waits for it; ``error`` says why."""
        if self._left:
            return
        if self._record.last_index is not None and not self._spool.has(self._record.last_index):
            self._save_for_last_stage()
        if isinstance(error, (JobFailed, JobCancelled, JobLost, BlobsAway)) and self._options.keep and self._spool.items():
            self._spool.mark_ended()
            self._waiting = True

    def _save_for_last_stage(self) -> None:
        """Save what only the last stage would have saved, which never runs; what cannot be saved is told and stays in the spool."""
        saved = self._places_to_save()
        places = [(plan.node_id, slot) for plan in self._record.collectors for slot in plan.slots]
        saver = self._saving([place for place in places if place not in saved])
        try:
            with saver:
                for index in self._spool.items():
                    try:
                        saver.add(index)
                    except (PictureUnsavable, ValueUnsavable) as error:
                        log.warning("job %s item %d: %s", self._record.job_id, index, error)
        except DistributedComfyError as error:
            log.warning("job %s: not all that is finished could be saved: %s", self._record.job_id, error)
        self._saved_late = saver.saved

    def _places_to_save(self) -> list[tuple[str, str]]:
        return [(plan.node_id, slot) for plan in self._record.collectors for slot in (plan.slots if plan.save_prefix else plan.unsaved)]

    def _saving(self, places: Sequence[tuple[str, str]]) -> ResultSaver:
        own = {plan.node_id: plan.save_prefix for plan in self._record.collectors if plan.save_prefix}
        prefixes = Prefixes(self._options.prefix, own)
        return ResultSaver(self._spool, places, self._options.out, metadata=self._metadata, prefixes=prefixes)

    def _read_metadata(self) -> FileMetadata:
        prompts, _ = self._cluster.jobs.prompts(self._record.job_id)
        seeds = tuple(self._seeds[index] for index in sorted(self._seeds))
        return FileMetadata(prompts[self._record.original_prompt_hash], self._record.extra_pnginfo, seeds)


def prepare_folder(out: Path) -> list[Path]:
    """Make the output folder, and find out now and not after the work whether it can be written.

    Returns:
        The folders that were made for it, innermost first, for `remove_empty`.
    Raises:
        OutputUnwritable: it cannot.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{SPOOL_FOLDER}-{time.monotonic_ns()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputUnwritable(path=str(out), reason=error.strerror or str(error)) from error
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made for nothing, innermost first."""
    for folder in folders:
        with suppress(OSError):  # something is in it
            folder.rmdir()
