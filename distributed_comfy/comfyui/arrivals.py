"""Saves what collectors with a ``save_prefix`` collect while the rest of their job is still made: in ComfyUI's output folder, by item."""
from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from distributed_comfy.collector.gaps import stand_ins
from distributed_comfy.collector.naming import FolderNames
from distributed_comfy.collector.save import FileMetadata, Prefixes, ResultSaver, SavedValue
from distributed_comfy.collector.spool import Spool
from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.job_entry import JobPlaces
from distributed_comfy.comfyui.saves import SaveWatch
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import JobRecord
from distributed_comfy.orchestrator.submit import QueuedJob

log = logging.getLogger(__name__)

_SHOWN = {"images": "images", "masks": "images", "audio": "audio"}
"""Slot -> under which name ComfyUI's page looks for its files in what a node shows."""


class Arrivals:
    """Of one job; from any thread.

    Args:
        spool: where its items lie; open until `close`.
        record: the job.
        metadata: for every file.
        output: ComfyUI's folder.
        saves: what its nodes are about to save there.
    """

    def __init__(self, spool: Spool, record: JobRecord, metadata: FileMetadata, output: Path, saves: SaveWatch) -> None:
        self._spool, self._record = spool, record
        self._output = output.absolute()
        self._saving = [plan for plan in record.collectors if plan.save_prefix]
        self._stop = threading.Event()
        self._taken: set[int] = set()
        self._told: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._begun = self._over = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"arrivals of {record.job_id}")
        self._saver: ResultSaver | None = None
        self._error: Exception | None = None
        if self._saving:
            places = [(plan.node_id, slot) for plan in self._saving for slot in plan.slots]
            prefixes = Prefixes(own={plan.node_id: plan.save_prefix for plan in self._saving})
            names = _NamesBesideNodes(self._output, saves, self._stop)
            self._saver = ResultSaver(spool, places, names, metadata=metadata, prefixes=prefixes)

    def begin(self) -> None:
        """A node waits for the job: save what is here, and what arrives from now on; returns at once.

        Not before: ComfyUI may have in its cache what a prompt that waits would give, and has saved it then; or the prompt is deleted.
        """
        if self._saver is not None:
            self._begun = True
            self._do(self._take_told)

    def add(self, index: int) -> None:
        """An item is in the spool; returns at once."""
        if self._saver is not None and index < self._record.generated:
            self._told.put(index)
            if self._begun:
                self._do(self._take_told)

    def shown(self, node_id: str) -> dict[str, Any]:
        """What a node of ComfyUI shows of the files of this collector, once all of them are saved; empty where it saves none.

        Raises:
            OutputUnwritable, PictureUnsavable, ValueUnsavable: one could not be saved; those before it are.
        """
        if self._saver is None or not any(plan.node_id == node_id for plan in self._saving):
            return {}
        done = self._do(self._finish)
        if done is not None:
            done.result()
        if self._error is not None:
            raise self._error
        shown: dict[str, Any] = {}
        for value in self._saver.saved:
            if value.node_id == node_id and value.slot in _SHOWN:
                shown.setdefault(_SHOWN[value.slot], []).append(self._as_shown(value))
        return shown

    def close(self) -> None:
        """Save what is here, and no more after that; what cannot be saved is told in the log, and stays in the spool."""
        if self._saver is None:
            return
        done = self._do(lambda: self._finish(complete=False)) if self._begun else self._do(self._saver.give_up)
        if done is not None:
            done.result()
        self._thread.shutdown(wait=True)
        if self._error is not None:
            log.warning("job %s: not all that has arrived is saved: %s", self._record.job_id, self._error)

    def halt(self) -> None:
        """This ComfyUI ends: wait for no node that saves under the same name."""
        self._stop.set()

    def _do(self, work: Callable[[], None]) -> Future[None] | None:
        try:
            return self._thread.submit(self._kept(work))
        except RuntimeError:  # closed
            return None

    def _kept(self, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if self._over or self._error is not None:
                return
            try:
                work()
            except Exception as error:
                self._error = error
                assert self._saver is not None
                self._saver.give_up()
                if not isinstance(error, DistributedComfyError):
                    log.exception("job %s: what has arrived could not be saved; please report it", self._record.job_id)

        return run

    def _take_told(self) -> None:
        """All that was told so far at once, so that several files are compressed at the same time."""
        assert self._saver is not None
        told = [self._told.get() for _ in range(self._told.qsize())]
        if told:
            self._take(told)
            self._saver.wait()

    def _take(self, indexes: Sequence[int]) -> None:
        assert self._saver is not None
        for index in indexes:
            if index not in self._taken:
                self._saver.add(index)
                self._taken.add(index)

    def _finish(self, *, complete: bool = True) -> None:
        assert self._saver is not None
        here = self._spool.items()
        self._take([index for index in here if index < self._record.generated])
        repeating = [plan.node_id for plan in self._saving if plan.on_missing == "repeat"]
        if complete and repeating:
            for index, source in stand_ins(here, self._record.generated).items():
                self._saver.stand_in(index, source, repeating)
        self._over = True
        self._saver.close()

    def _as_shown(self, value: SavedValue) -> dict[str, str]:
        relative = value.path.relative_to(self._output)
        subfolder = relative.parent.as_posix()
        return {"filename": relative.name, "subfolder": "" if subfolder == "." else subfolder, "type": "output"}


def arrivals_of(accepted: AcceptedPrompt, places: JobPlaces, queued: QueuedJob, spool: Spool) -> Arrivals:
    """Those of the job of a prompt; with its metadata, unless ComfyUI was told to write none."""
    seeds = tuple(item.seed for item in queued.plan.items)
    metadata = FileMetadata({}) if places.host.hides_metadata else FileMetadata(accepted.planned, accepted.extra_pnginfo, seeds)
    return Arrivals(spool, queued.record, metadata, places.host.folders["output"], places.saves)


class _NamesBesideNodes(FolderNames):
    """Waits for nodes of this ComfyUI that save under the same name; see `SaveWatch.alone`."""

    def __init__(self, folder: Path, saves: SaveWatch, stop: threading.Event) -> None:
        super().__init__(folder)
        self._saves, self._stop = saves, stop

    def put_next(self, file: Path, prefix: str, suffix: str, note: Callable[[Path], None] = lambda path: None) -> Path:
        """See `FolderNames.put_next`."""
        relative = PurePosixPath(prefix)
        with self._saves.alone(self.folder / relative.parent, relative.name, self._stop):
            return super().put_next(file, prefix, suffix, note)
