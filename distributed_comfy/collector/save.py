"""What a job leaves in the user's folder: collected images as PNG, and the files that output nodes wrote.

Nothing that lies there is ever overwritten, and a file appears under its name whole or not at all.
"""
from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from distributed_comfy.collector.assemble import image_ref, values_of_item
from distributed_comfy.collector.naming import FolderNames, safe_relative, writing
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import PictureUnsavable
from distributed_comfy.messages import FileRef, Prompt, TensorRef

log = logging.getLogger(__name__)

COMPRESS_LEVEL = 4
"""Of PNG, as ComfyUI's SaveImage."""
PNG_THREADS = 4
"""Images compressed at the same time; Pillow lets go of the interpreter meanwhile."""


@dataclass(frozen=True)
class PictureMetadata:
    """The text that ComfyUI keeps in an image, so that dropping the file onto its editor brings the graph back."""

    prompt: Prompt
    """The user's own, not a stage's."""
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)
    """``workflow`` and what else the submitter sent along."""
    seeds: tuple[str, ...] = ()
    """Item -> its seed in decimal."""

    def of_item(self, index: int) -> PngInfo:
        """Text chunks ``prompt``, those of `extra_pnginfo` and ``seed``, all JSON."""
        texts: dict[str, Any] = {"prompt": self.prompt, **self.extra_pnginfo}
        if index < len(self.seeds) and self.seeds[index]:
            texts.setdefault("seed", int(self.seeds[index]))
        chunks = PngInfo()
        for keyword, value in texts.items():
            if keyword.isascii() and 0 < len(keyword) < 80:  # what a PNG keyword may be
                chunks.add_text(keyword, json.dumps(value))
        return chunks


@dataclass(frozen=True)
class SavedImage:
    """One collected image on disk."""

    index: int
    """The item."""
    node_id: str
    """The collector."""
    list_index: int
    batch_index: int
    path: Path


@dataclass(frozen=True)
class SavedFile:
    """One file of an output node on disk."""

    index: int
    """The item."""
    ref: FileRef
    """With the name it had at its worker."""
    path: Path
    name: str
    """What it is called now, relative to the folder, with ``/``."""


@dataclass(frozen=True)
class _Drawn:
    """One image that is being compressed."""

    place: SavedImage
    """Without a path yet."""
    key: str
    """The image among the job's files, see `Spool.saved_files`."""
    written: Future[tuple[Path, bool]]
    """Its file, and whether that has its name already because an earlier collector of the job saved it."""


class ImageSaver:
    """Saves collected images while a job runs: compressed in threads as items arrive, named in the order of items.

    Names go on where ComfyUI's count in the folder stands (``ComfyUI_00001_.png``).  An item's files appear once all items before it
    are there, or at `close`.  Used from one thread.

    Args:
        spool: where the items lie.
        node_ids: the collectors to save.
        folder: made with the first image.
        metadata: for every image.
        prefix: of the names.
    """

    def __init__(self, spool: Spool, node_ids: Sequence[str], folder: Path, *, metadata: PictureMetadata, prefix: str = "ComfyUI") -> None:
        self._spool = spool
        self._before = spool.saved_files(folder)
        self._node_ids = tuple(node_ids)
        self._names = FolderNames(folder)
        self._metadata = metadata
        self._prefix = prefix
        self._threads = ThreadPoolExecutor(PNG_THREADS, thread_name_prefix="png")
        self._drawn: dict[int, list[_Drawn]] = {}
        self._next = 0
        self._saved: list[SavedImage] = []

    def add(self, index: int) -> None:
        """Begin to save an item that is in the spool; returns at once.

        Raises:
            PictureUnsavable: it collected something else than images.
            OutputUnwritable: an image before it could not be written.
        """
        if index not in self._drawn and index >= self._next:
            self._drawn[index] = [drawn for node_id in self._node_ids for drawn in self._draw(index, node_id)]
        while all(drawn.written.done() for drawn in self._drawn.get(self._next, ())) and self._next in self._drawn:
            self._finish(self._next)
            self._next += 1

    @property
    def saved(self) -> list[SavedImage]:
        """Every image that has its name by now, in the order of items, collectors, lists and batches."""
        return self._saved

    def close(self) -> list[SavedImage]:
        """Wait for all images, name those that still had to wait for an item that never came, and end the threads.

        Returns:
            Every image, in the order of items, collectors, lists and batches.
        Raises:
            OutputUnwritable: an image could not be written; those before it are there.
            FrameError: a file of the spool was damaged.
        """
        try:
            for index in sorted(self._drawn):
                self._finish(index)
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._sweep()
        return self._saved

    def __enter__(self) -> ImageSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._sweep()

    def _draw(self, index: int, node_id: str) -> list[_Drawn]:
        drawn = []
        for placed in values_of_item(index, self._spool.result(index), node_id, "images"):
            ref = image_ref(placed)
            if not 1 <= ref.shape[3] <= 4:
                raise PictureUnsavable(index=index, shape=list(ref.shape))
            for batch_index in range(ref.shape[0]):
                place = SavedImage(index, node_id, placed.list_index, batch_index, Path())
                key = f"image {index} {node_id} {placed.list_index} {batch_index}"
                drawn.append(_Drawn(place, key, self._threads.submit(self._compress, key, place, ref)))
        return drawn

    def _compress(self, key: str, place: SavedImage, ref: TensorRef) -> tuple[Path, bool]:
        """Write one image under a name that nobody looks for, unless it is in the folder already; see `_Drawn.written`."""
        if (saved := self._before.find(key)) is not None:
            return saved, True
        pixels = to_pixels(self._spool.array(place.index, ref)[place.batch_index])
        metadata = self._metadata.of_item(place.index)

        def write(partial: Path) -> None:
            Image.fromarray(pixels).save(partial, format="PNG", compress_level=COMPRESS_LEVEL, pnginfo=metadata)

        return _write_partial(self._spool.partial, write), False

    def _finish(self, index: int) -> None:
        """Give an item's images their names."""
        while self._drawn.get(index):
            drawn = self._drawn[index][0]
            path, named = drawn.written.result()
            if not named:
                path = self._names.put_next(path, self._prefix, ".png", partial(self._before.note, drawn.key, path))
            self._saved.append(replace(drawn.place, path=path))
            self._drawn[index].pop(0)
        self._drawn.pop(index, None)

    def _sweep(self) -> None:
        """Remove images that got no name, after an error."""
        for drawn in (drawn for of_item in self._drawn.values() for drawn in of_item):
            if not drawn.written.cancelled() and drawn.written.exception() is None:
                path, named = drawn.written.result()
                if not named:
                    path.unlink(missing_ok=True)


def to_pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """One image as 8 bit, rounded down as ComfyUI's SaveImage does it.

    Args:
        image: [H, W, 1 to 4], any number type, nominally in [0, 1]; what lies outside is clipped, what is no number becomes 0.
    Returns:
        [H, W, 2 to 4] or, with one channel, [H, W].
    """
    scaled = np.clip(255.0 * image, 0, 255)
    if not np.isfinite(scaled.max(initial=0)):
        scaled = np.nan_to_num(scaled)
    pixels = scaled.astype(np.uint8)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def save_files(
    spool: Spool, index: int, names: FolderNames, *, folders: Sequence[Literal["output", "temp"]] = ("output", "temp")
) -> list[SavedFile]:
    """Copy the files that output nodes wrote in one item to the user's folder.

    Subfolders are kept; a name that is taken is counted on; a name that would leave the folder is cut down to what stays in it.

    Args:
        spool: holds the item.
        index: the item.
        names: of the user's folder; the same object for all items of a job.
        folders: which of ComfyUI's folders; previews lie in ``temp``.
    Raises:
        OutputUnwritable: the disk is full, or the folder may not be written.
    """
    before = spool.saved_files(names.folder)
    saved = []
    for number, ref in enumerate(spool.result(index).files):
        if ref.folder in folders:
            key = f"file {index} {number} {ref.folder} {ref.name}"
            path = before.find(key)
            if path is None:
                copy = _write_partial(spool.partial, partial(shutil.copyfile, spool.path(index, ref.blob)))
                path = names.put(copy, safe_relative(ref.name), partial(before.note, key, copy))
                if path.name != Path(ref.name).name:
                    log.info("saved %s of node %s as %s", ref.name, ref.node_id, path.name)
            saved.append(SavedFile(index, ref, path, path.relative_to(names.folder).as_posix()))
    return saved


def _write_partial(folder: Path, write: Callable[[Path], Any]) -> Path:
    """A new file in ``folder`` with what ``write`` puts there; nothing is left of it after an error."""
    file = folder / secrets.token_hex(8)
    with writing(folder):
        try:
            write(file)
        except BaseException:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            raise
    return file
