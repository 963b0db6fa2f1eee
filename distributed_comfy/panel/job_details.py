"""One job with all that is known of it, its files, and pictures of its items."""
from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from distributed_comfy.collector.spool import find_spooled
from distributed_comfy.errors import DistributedComfyError, FrameMalformed, PictureNotHere
from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.messages import FileRef, ItemResult, TensorRef
from distributed_comfy.panel.job_files import JobFiles, media_type
from distributed_comfy.panel.job_items import KnownItems, is_image, pictures_of, read_items
from distributed_comfy.panel.job_views import Estimate, shown_job
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.steps import Steps
from distributed_comfy.panel.unserved import why_unserved
from distributed_comfy.panel.words import item_error
from distributed_comfy.state.records import JobState
from distributed_comfy.transport.frames import decode_tensor
from distributed_comfy.transport.pictures import read_picture
from tasks.cluster import Cluster


@dataclass(frozen=True)
class Picture:
    """To be shown by a browser."""

    content: bytes
    media_type: str


class JobDetails:
    """Answers for one panel; waits for Redis and disk.

    Args:
        place: what serves the panel.
        steps: of running items.
        jobs: all that are known.
    """

    def __init__(self, place: Place, steps: Steps, jobs: Callable[[], Mapping[str, JobState]]) -> None:
        self._place = place
        self._steps = steps
        self._files = JobFiles(place, jobs)

    def shown(self, job_id: str, estimate: Estimate) -> dict[str, Any]:
        """As ``JobDetail`` of openapi.json.

        Raises:
            JobUnknown: there is no such job.
        """
        cluster = self._place.cluster()
        record, state = cluster.jobs.record(job_id), cluster.jobs.job_state(job_id)
        items = read_items(cluster, job_id, KnownItems(), self._steps)
        return {
            "job": self._job(cluster, job_id, state, estimate), "owner": cluster.jobs.owner(job_id),
            "frames": _frames_in_words(record.frames), "error": item_error(state.error), "items": list(items.values()),
            **self._files.shown(cluster, job_id, state),
        }  # fmt: skip

    def job(self, job_id: str, estimate: Estimate) -> dict[str, Any]:
        """As ``Job`` of openapi.json; errors as of `shown`."""
        cluster = self._place.cluster()
        return self._job(cluster, job_id, cluster.jobs.job_state(job_id), estimate)

    def _job(self, cluster: Cluster, job_id: str, state: JobState, estimate: Estimate) -> dict[str, Any]:
        return shown_job(job_id, state, estimate, mine=self._is_mine(job_id, state), unserved=why_unserved(cluster, job_id, state))

    # -- files -----------------------------------------------------------------------------------------------------------
    def results(self, job_id: str) -> dict[str, Any]:
        """Files of a job that lie on this host; errors as of `shown`."""
        cluster = self._place.cluster()
        found = self._files.shown(cluster, job_id, cluster.jobs.job_state(job_id))
        return {name.removeprefix("results_"): value for name, value in found.items()}

    def file(self, job_id: str, path: str) -> tuple[Path, str]:
        """One of `results`, and its media type; nothing else is ever given.

        Raises:
            JobUnknown: there is no such job.
            ResultNotHere: it is none of them.
        """
        cluster = self._place.cluster()
        found = self._files.one(cluster, job_id, cluster.jobs.job_state(job_id), path)
        return found, media_type(found)

    def thumbnail(self, job_id: str, path: str, side_px: int) -> Picture:
        """One of `results` that is a picture, as a small one; errors as of `file`.

        Raises:
            PictureUnreadable: it is none that could be drawn here.
        """
        return _small(read_picture(self.file(job_id, path)[0]), side_px)

    # -- pictures --------------------------------------------------------------------------------------------------------
    def preview(self, job_id: str, index: int, side_px: int) -> Picture:
        """What an item's sampler shows while it runs, and what it made when it is done.

        Raises:
            JobUnknown: there is no such job.
            PictureNotHere: it has none, or not on this host.
        """
        cluster = self._place.cluster()
        done = cluster.jobs.result(job_id, index)
        if done is None:
            step = self._steps.of(job_id, index, cluster.jobs.holder(job_id, index))
            if step is None or not step.preview:
                cluster.jobs.job_state(job_id)  # says where there is no such job
                raise PictureNotHere(index=index, job_id=job_id, reason="it is not done, and nothing was shown of it yet")
            return Picture(step.preview, _kind_of(step.preview))
        return self._made(cluster, job_id, index, done[1], side_px)

    def _made(self, cluster: Cluster, job_id: str, index: int, result: ItemResult, side_px: int) -> Picture:
        ref = next(pictures_of(result), None)
        if ref is None:
            raise PictureNotHere(index=index, job_id=job_id, reason="it made something else")
        spool = cluster.jobs.spool(job_id)
        spooled = find_spooled(Path(spool.folder), job_id, index) if spool and spool.host == self._place.settings.host_name else None
        try:
            content = (spooled or cluster.blobs).get(ref.blob)
            return _drawn(content, ref, cluster.settings.blob_limit_bytes, side_px)
        except (DistributedComfyError, OSError, ValueError) as error:
            where = f"its result is on host {spool.host}" if spool and spool.host != self._place.settings.host_name else str(error)
            raise PictureNotHere(index=index, job_id=job_id, reason=where) from error

    def _is_mine(self, job_id: str, state: JobState) -> bool:
        master = self._place.master
        return job_id in master.jobs(over=True) if master is not None else state.submitter == self._place.settings.submitter


def _frames_in_words(plan: FramePlan) -> str:
    if plan.option != "auto":
        return plan.option
    return f"auto: 8 bits from {', '.join(plan.eight_bit)}, all else exact" if plan.eight_bit else "auto: all exact"


def _drawn(content: memoryview | bytes, ref: TensorRef | FileRef, limit_bytes: int, side_px: int) -> Picture:
    """A picture as a small PNG."""
    if isinstance(ref, FileRef):
        image = read_picture(bytes(content))
    else:
        batch = decode_tensor(content, limit_bytes=limit_bytes)
        if not is_image(batch.shape):
            raise FrameMalformed(reason=f"an image of shape {list(batch.shape)}")
        pixels = numpy.clip(numpy.nan_to_num(batch[0].astype(numpy.float32)) * 255 + 0.5, 0, 255).astype(numpy.uint8)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return _small(image, side_px)


def _small(image: Image.Image, side_px: int) -> Picture:
    image.thumbnail((side_px, side_px))
    written = io.BytesIO()
    (image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")).save(written, "PNG")
    return Picture(written.getvalue(), "image/png")


def _kind_of(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if content[8:12] == b"WEBP" else "image/jpeg"
