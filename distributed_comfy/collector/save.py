"""What a job leaves in the user's folder: files of collected values, and the files that output nodes wrote.

Nothing that lies there is ever overwritten, and a file appears under its name whole or not at all.
"""
from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from distributed_comfy.collector.assemble import values_of_item
from distributed_comfy.collector.file_formats import FilePlan, plan_files
from distributed_comfy.collector.naming import FolderNames, filled_prefix, safe_relative, writing
from distributed_comfy.collector.spool import Spool
from distributed_comfy.messages import FileRef, Prompt

log = logging.getLogger(__name__)

_MIDDLES = {"images": "", "audio": "_audio", "latents": "_latent", "masks": "_mask"}
"""Slot -> what comes between prefix and number in the names of its files."""
WRITERS = 4
"""Images compressed at the same time; Pillow lets go of the interpreter meanwhile."""


@dataclass(frozen=True)
class FileMetadata:
    """The text that ComfyUI keeps in an image or a latent, so that dropping the file onto its editor brings the graph back."""

    prompt: Prompt
    """The user's own, not a stage's; empty where it is not to be told."""
    extra_pnginfo: dict[str, Any] = field(default_factory=dict)
    """``workflow`` and what else the submitter sent along."""
    seeds: tuple[str, ...] = ()
    """Item -> its seed in decimal."""

    def of_item(self, index: int) -> dict[str, Any]:
        """``prompt``, the entries of `extra_pnginfo` and ``seed``."""
        texts: dict[str, Any] = {**({"prompt": self.prompt} if self.prompt else {}), **self.extra_pnginfo}
        if index < len(self.seeds) and self.seeds[index]:
            texts.setdefault("seed", int(self.seeds[index]))
        return texts


@dataclass(frozen=True)
class Prefixes:
    """First parts of the names of files."""

    common: str = "ComfyUI"
    own: Mapping[str, str] = field(default_factory=dict)
    """Of single collectors, as users write them; see `filled_prefix`."""


_PLAIN = Prefixes()


@dataclass(frozen=True)
class SavedValue:
    """One collected image, mask, track or batch of latents on disk."""

    index: int
    """The item."""
    node_id: str
    """The collector."""
    slot: str
    """Its slot: ``images``, ``audio``, ``latents`` or ``masks``."""
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
    """One file that is being written."""

    place: SavedValue
    """Without a path yet."""
    key: str
    """The value among the job's files, see `Spool.saved_files`."""
    prefix: str
    """Of its name."""
    suffix: str
    written: Future[tuple[Path, bool]]
    """Its file, and whether that has its name already because an earlier collector of the job saved it."""


class ResultSaver:
    """Saves what collectors collected while a job runs: written in threads as items arrive, named in the order of items.

    Names go on where ComfyUI's count in the folder stands (``ComfyUI_00001_.png``, ``ComfyUI_audio_00001_.wav``).  An item's
    files appear once all items before it are there, or at `close`; so those behind a missing one wait for that.  Used from one thread.

    Args:
        spool: where the items lie.
        places: collectors and their slots to save.
        folder: made with the first file; or what gives names in it.
        metadata: for every file.
        prefixes: of the names.
    """

    def __init__(
        self,
        spool: Spool,
        places: Sequence[tuple[str, str]],
        folder: Path | FolderNames,
        *,
        metadata: FileMetadata,
        prefixes: Prefixes = _PLAIN,
    ) -> None:
        self._names = folder if isinstance(folder, FolderNames) else FolderNames(folder)
        self._spool = spool
        self._before = spool.saved_files(self._names.folder)
        self._places = tuple(places)
        self._metadata = metadata
        self._prefixes = prefixes
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="save")
        self._drawn: dict[int, list[_Drawn]] = {}
        self._next = 0
        self._saved: list[SavedValue] = []

    def add(self, index: int) -> None:
        """Begin to save an item that is in the spool; returns at once.

        Raises:
            PictureUnsavable, ValueUnsavable: a slot collected something else than it is for.
            OutputUnwritable: a file before it could not be written.
        """
        if index not in self._drawn and index >= self._next:
            self._drawn[index] = [drawn for place in self._places for drawn in self._draw(index, *place)]
        while all(drawn.written.done() for drawn in self._drawn.get(self._next, ())) and self._next in self._drawn:
            self._finish(self._next)
            self._next += 1

    def wait(self) -> None:
        """Until what was begun has its names, up to an item that is not here.

        Raises:
            OutputUnwritable, FrameError: as `close`.
        """
        while self._next in self._drawn:
            self._finish(self._next)
            self._next += 1

    def stand_in(self, index: int, source: int, node_ids: Collection[str]) -> None:
        """Save what these collectors have of item ``source`` once more, in the place of the missing item ``index``; named by `close`."""
        places = [place for place in self._places if place[0] in node_ids]
        self._drawn[index] = [drawn for place in places for drawn in self._draw(source, *place, at=index)]

    @property
    def saved(self) -> list[SavedValue]:
        """Every file that has its name by now, in the order of items, collectors, slots, lists and batches."""
        return self._saved

    def close(self) -> list[SavedValue]:
        """Wait for all files, name those that still had to wait for an item that never came, and end the threads.

        Returns:
            Every file, in the order of items, collectors, slots, lists and batches.
        Raises:
            OutputUnwritable: a file could not be written; those before it are there.
            FrameError: a file of the spool was damaged.
        """
        try:
            for index in sorted(self._drawn):
                self._finish(index)
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._sweep()
        return self._saved

    def __enter__(self) -> ResultSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.give_up()

    def give_up(self) -> None:
        """End the threads; files that have no name yet go."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._sweep()

    def _draw(self, index: int, node_id: str, slot: str, at: int = -1) -> list[_Drawn]:
        """Begin to write the files of one slot of item ``index``, in its own place or in that of item ``at``."""
        drawn = []
        for placed in values_of_item(index, self._spool.result(index), node_id, slot):
            for plan in plan_files(slot, placed):
                place = SavedValue(index, node_id, slot, placed.list_index, plan.batch_index, Path())
                key = f"{slot} {index if at < 0 else at} {node_id} {placed.list_index} {plan.batch_index}"
                written = self._threads.submit(self._write, key, place, plan)
                drawn.append(_Drawn(place, key, self._prefix_of(place, plan), plan.suffix, written))
        return drawn

    def _prefix_of(self, place: SavedValue, plan: FilePlan) -> str:
        shape = plan.ref.shape
        height, width = shape[-3:-1] if place.slot == "images" else shape[-2:]
        own = self._prefixes.own.get(place.node_id, "")
        return f"{filled_prefix(own, width, height) if own else self._prefixes.common}{_MIDDLES[place.slot]}"

    def _planned(self, place: SavedValue) -> FilePlan:
        """The file of a place, from what the spool has of its item now."""
        placed = values_of_item(place.index, self._spool.result(place.index), place.node_id, place.slot)
        plans = [plan for value in placed if value.list_index == place.list_index for plan in plan_files(place.slot, value)]
        return next(plan for plan in plans if plan.batch_index == place.batch_index)

    def _write(self, key: str, place: SavedValue, plan: FilePlan) -> tuple[Path, bool]:
        """Write one file under a name that nobody looks for, unless it is in the folder already; see `_Drawn.written`."""
        if (saved := self._before.find(key)) is not None:
            return saved, True
        try:
            tensor = self._spool.array(place.index, plan.ref)
        except (KeyError, FileNotFoundError):  # a later claim's result has taken the place of the one that this was planned from
            plan = self._planned(place)
            tensor = self._spool.array(place.index, plan.ref)
        texts = self._metadata.of_item(place.index)
        return _write_partial(self._spool.partial, lambda path: plan.write(path, tensor, texts)), False

    def _finish(self, index: int) -> None:
        """Give an item's files their names."""
        while self._drawn.get(index):
            drawn = self._drawn[index][0]
            path, named = drawn.written.result()
            if not named:
                path = self._names.put_next(path, drawn.prefix, drawn.suffix, partial(self._before.note, drawn.key, path))
            self._saved.append(replace(drawn.place, path=path))
            self._drawn[index].pop(0)
        self._drawn.pop(index, None)

    def _sweep(self) -> None:
        """Remove files that got no name, after an error."""
        for drawn in (drawn for of_item in self._drawn.values() for drawn in of_item):
            if not drawn.written.cancelled() and drawn.written.exception() is None:
                path, named = drawn.written.result()
                if not named:
                    path.unlink(missing_ok=True)


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
