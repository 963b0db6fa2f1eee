"""What an item made, for whoever asks by its id: from the blob store, or from the spool where a collector on this host keeps it."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_comfy.collector.spool import find_spooled, references
from distributed_comfy.errors import BlobMissing, FileDamaged, OutputUnwritable, ResultCollected
from distributed_comfy.messages import FileRef, ItemResult, item_id
from distributed_comfy.state.jobs import JobTable
from distributed_comfy.transport.blobs import BlobReader, BlobStore
from distributed_comfy.transport.files import check_name
from distributed_comfy.transport.values import load_value
from tasks.app import TensorKind


@dataclass(frozen=True)
class ResultFile:
    """A file that an output node wrote."""

    name: str
    """Path relative to its folder, with ``/``."""
    media_type: str
    folder: str
    """Which of ComfyUI's folders it was in: ``output`` or ``temp``."""
    node_id: str
    """The output node that wrote it."""
    content: bytes = field(repr=False)
    """Compared with the hash that its worker took."""

    def save(self, folder: Path) -> Path:
        """Write it below a folder, under its own name; a file of that name is replaced.

        Raises:
            FileNameUnsafe: the name leads out of the folder.
            OutputUnwritable: the disk is full, the folder read-only...
        """
        path = folder.joinpath(*check_name(self.name).parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content)
        except OSError as error:
            raise OutputUnwritable(path=str(path), reason=error.strerror or str(error)) from error
        return path


@dataclass(frozen=True)
class ItemOutput:
    """What ``AsyncResult(item_id).get()`` gives."""

    job_id: str
    index: int
    values: dict[str, dict[str, list[Any]]]
    """Collector's node id -> slot (``images``, ``audio``, ``latents``, ``masks``) -> values in the graph's order.

    Images are [B, H, W, C] float32, usually in [0, 1]; audio is ``{"waveform": [B, C, T], "sample_rate": int}``; latents are
    ``{"samples": [B, C, h, w]}`` (of a video [B, C, T, h, w]); masks are [B, H, W].  Bit for bit what the worker's graph computed.
    A prompt without a collector has no values, only files.
    """
    files: tuple[ResultFile, ...]
    """What output nodes wrote, in the order in which the nodes ran."""
    outputs: dict[str, Any]
    """ComfyUI's ``outputs`` of the history: node id -> ui dict."""
    worker: str
    device_class: str
    """Results of one device class are comparable bit for bit."""
    seconds: float
    """Engine time, without queueing and shipping."""


class ResultShelf:
    """Access to the results of items for one process.

    Args:
        jobs: the table.
        blobs: where results lie until they are fetched or forgotten.
        tensors: what `fetch` makes of tensors.
    """

    def __init__(self, jobs: JobTable, blobs: BlobStore, tensors: TensorKind) -> None:
        self._jobs = jobs
        self._blobs = blobs
        self._tensors = tensors

    def members(self, job_id: str) -> list[str]:
        """Ids of all items of a job, the last stage included, in order.

        Raises:
            JobUnknown: no such job, or it ended too long ago.
        """
        return [item_id(job_id, index) for index in range(self._jobs.record(job_id).items)]

    def fetch(self, job_id: str, index: int) -> ItemOutput:
        """Bring a done item's result here; it stays where it is.

        Raises:
            ResultCollected: the job's collector has it, and this process cannot read the collector's spool (any more).
            BlobMissing: it was forgotten, has expired, or went with a restart of the blob server.
            FrameError: what lies there is not what the worker sent.
        """
        found = self._jobs.result(job_id, index)
        try:
            if found is None:
                raise BlobMissing(blob=f"of item {item_id(job_id, index)}")
            return self._read(job_id, index, found[1], self._blobs)
        except BlobMissing as error:
            place = self._jobs.spool(job_id)
            if place is None:
                raise
            spooled = find_spooled(Path(place.folder), job_id, index)
            try:
                if spooled is not None:
                    return self._read(job_id, index, spooled.result, spooled)
            except BlobMissing:  # the job ended in this moment
                pass
            raise ResultCollected(item_id=item_id(job_id, index), host=place.host, folder=place.out) from error

    def forget(self, job_id: str, index: int) -> None:
        """Drop an item's result from the blob store; one that belongs to a job's collector is left to that."""
        found = self._jobs.result(job_id, index)
        if found is None or self._jobs.record(job_id).results != "celery":
            return
        claim_id, result = found
        self._blobs.unlink([ref.blob for ref in references(result)])
        self._jobs.mark_fetched(job_id, index, claim_id)

    def _read(self, job_id: str, index: int, result: ItemResult, blobs: BlobReader) -> ItemOutput:
        values: dict[str, dict[str, list[Any]]] = {}
        for capture in sorted(result.captures, key=lambda capture: capture.list_index):
            value = load_value(blobs, capture.value, as_torch=self._tensors == "torch")
            values.setdefault(capture.node_id, {}).setdefault(capture.slot, []).append(value)
        files = tuple(_read_file(blobs, ref) for ref in result.files)
        return ItemOutput(job_id, index, values, files, result.outputs, result.worker, result.device_class, result.seconds)


def _read_file(blobs: BlobReader, ref: FileRef) -> ResultFile:
    content = bytes(blobs.get(ref.blob))
    found = hashlib.sha256(content).hexdigest()
    if found != ref.sha256:
        raise FileDamaged(name=ref.name, found=f"sha256 {found}", expected=f"sha256 {ref.sha256}")
    return ResultFile(ref.name, ref.media_type, ref.folder, ref.node_id, content)
