"""One job with all that is known of it, its files, and pictures of its items."""
from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from distributed_comfy.collector.spool import SPOOL_FOLDER, find_spooled
from distributed_comfy.errors import DistributedComfyError, FrameMalformed, PictureNotHere, ResultNotHere
from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.messages import FileRef, ItemResult, TensorRef
from distributed_comfy.panel.job_items import KnownItems, read_items
from distributed_comfy.panel.job_views import Estimate, shown_job
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.steps import Steps
from distributed_comfy.panel.words import item_error
from distributed_comfy.state.records import JobState
from distributed_comfy.transport.frames import decode_tensor
from distributed_comfy.transport.pictures import read_picture
from tasks.cluster import Cluster

_MOST_FILES = 5000
_BEFORE_S, _AFTER_S = 2.0, 600.0
"""A job's files are those of its folder that were written from its submission to its end, and so much around that."""
_LARGEST_SIDE_PX = 16_384
_DIMENSIONS = 4


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
    """

    def __init__(self, place: Place, steps: Steps) -> None:
        self._place = place
        self._steps = steps

    def shown(self, job_id: str, estimate: Estimate) -> dict[str, Any]:
        """As ``JobDetail`` of openapi.json.

        Raises:
            JobUnknown: there is no such job.
        """
        cluster = self._place.cluster()
        record, state = cluster.jobs.record(job_id), cluster.jobs.job_state(job_id)
        items = read_items(cluster, job_id, KnownItems(), self._steps)
        results = self._results(cluster, job_id, state)
        return {
            "job": shown_job(job_id, state, estimate, mine=self._is_mine(job_id, state)), "owner": cluster.jobs.owner(job_id),
            "frames": _frames_in_words(record.frames), "error": item_error(state.error), "items": list(items.values()),
            "results_host": results["host"], "results_folder": results["folder"], "results_here": results["here"],
            "results": results["results"],
        }  # fmt: skip

    def job(self, job_id: str, estimate: Estimate) -> dict[str, Any]:
        """As ``Job`` of openapi.json; errors as of `shown`."""
        state = self._place.cluster().jobs.job_state(job_id)
        return shown_job(job_id, state, estimate, mine=self._is_mine(job_id, state))

    # -- files -----------------------------------------------------------------------------------------------------------
    def results(self, job_id: str) -> dict[str, Any]:
        """Files of a job that lie on this host; errors as of `shown`."""
        cluster = self._place.cluster()
        return self._results(cluster, job_id, cluster.jobs.job_state(job_id))

    def file(self, job_id: str, path: str) -> tuple[Path, str]:
        """One of `results`, and its media type; nothing else is ever given.

        Raises:
            JobUnknown: there is no such job.
            ResultNotHere: it is none of them.
        """
        cluster = self._place.cluster()
        folder, files = self._files(cluster, job_id, cluster.jobs.job_state(job_id))
        for file in files:
            if folder is not None and file.relative_to(folder).as_posix() == path:
                return file, _media_type(file)
        raise ResultNotHere(job_id=job_id, name=path[:200])

    def _results(self, cluster: Cluster, job_id: str, state: JobState) -> dict[str, Any]:
        spool, host = cluster.jobs.spool(job_id), self._place.settings.host_name
        folder, files = self._files(cluster, job_id, state)
        listed = [
            {"path": file.relative_to(folder).as_posix(), "name": file.name, "media_type": _media_type(file),
             "size_bytes": file.stat().st_size, "item": None}
            for file in files if folder is not None
        ]  # fmt: skip
        if folder is not None:
            return {"here": True, "host": host, "folder": str(folder), "results": listed}
        return {"here": False, "host": spool.host if spool else "", "folder": spool.out if spool else "", "results": []}

    def _files(self, cluster: Cluster, job_id: str, state: JobState) -> tuple[Path | None, list[Path]]:
        """The folder of a job's files on this host, and those; the folder is None where they are elsewhere."""
        master = self._place.master
        named = master.files(job_id) if master is not None else None
        if named is not None:
            return _common(named)
        spool = cluster.jobs.spool(job_id)
        if spool is None or spool.host != self._place.settings.host_name or not spool.out:
            return None, []
        out = Path(spool.out)
        if not out.is_dir() or out.is_relative_to(self._place.settings.cache_folder.absolute()):  # a ComfyUI saves elsewhere
            return None, []
        offset_s = time.time() - cluster.hosts.now_ms() / 1000  # of this host's clock, by which its files are dated
        first = state.created_ms / 1000 + offset_s - _BEFORE_S
        last = state.ended_ms / 1000 + offset_s + _AFTER_S if state.ended_ms else float("inf")
        return out, sorted(file for file in _files_below(out) if first <= file.stat().st_mtime <= last)

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
        ref = next(_pictures(result), None)
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


def _common(paths: Any) -> tuple[Path | None, list[Path]]:
    """The folder in which all of these lie."""
    files = sorted({Path(path) for path in paths if Path(path).is_file()})
    if not files:
        return None, []
    files = [file for file in files if file.anchor == files[0].anchor]  # on Windows another drive has no folder in common
    folder = files[0].parent
    while not all(file.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder, files


def _files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder and below it; no link is followed, and no spool looked into."""
    waiting, found = [folder], 0
    while waiting:
        try:
            entries = sorted(waiting.pop().iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.is_symlink() or entry.name == SPOOL_FOLDER:
                continue
            if entry.is_dir():
                waiting.append(entry)
            elif entry.is_file():
                found += 1
                if found > _MOST_FILES:
                    return
                yield entry


def _media_type(file: Path) -> str:
    return guess_type(file.name)[0] or "application/octet-stream"


def _pictures(result: ItemResult) -> Iterator[TensorRef | FileRef]:
    for capture in result.captures:
        value = capture.value
        if isinstance(value, TensorRef) and _is_image(value.shape):
            yield value
    yield from (file for file in result.files if file.media_type.startswith("image/"))


def _is_image(shape: tuple[int, ...]) -> bool:
    """Whether it is [B, H, W, C] of a size that is shown."""
    return len(shape) == _DIMENSIONS and shape[0] > 0 and shape[-1] in (1, 3, 4) and 0 < max(shape[1:3]) <= _LARGEST_SIDE_PX


def _drawn(content: memoryview | bytes, ref: TensorRef | FileRef, limit_bytes: int, side_px: int) -> Picture:
    """A picture as a small PNG."""
    if isinstance(ref, FileRef):
        image = read_picture(bytes(content))
    else:
        batch = decode_tensor(content, limit_bytes=limit_bytes)
        if not _is_image(batch.shape):
            raise FrameMalformed(reason=f"an image of shape {list(batch.shape)}")
        pixels = numpy.clip(numpy.nan_to_num(batch[0].astype(numpy.float32)) * 255 + 0.5, 0, 255).astype(numpy.uint8)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((side_px, side_px))
    written = io.BytesIO()
    (image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")).save(written, "PNG")
    return Picture(written.getvalue(), "image/png")


def _kind_of(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if content[8:12] == b"WEBP" else "image/jpeg"
