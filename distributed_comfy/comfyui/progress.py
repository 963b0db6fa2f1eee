"""How far a job is, as its node in ComfyUI shows it."""
from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.orchestrator.counting import JobCount
from distributed_comfy.orchestrator.progress import ProgressListener, Step
from distributed_comfy.orchestrator.waiting import KeptResults
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_SHOWN_WORKERS = 4


@dataclass(frozen=True)
class Shown:
    """One look at a job."""

    done: int
    total: int
    """Items and tiles; 0 while that is not known."""
    text: str
    """``3 of 8 items; pc1-cuda0 5/20``; empty while nothing is known."""
    count: str = ""
    """The first part of it."""
    preview: bytes = field(default=b"", repr=False)
    """JPEG or PNG of the latest one; empty where there was none since the last look."""


class JobProgress:
    """Told by the threads of a job, looked at by its node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = JobCount()
        self._steps: dict[str, Step] = {}
        """Worker -> what it did last, of items that are not here yet."""
        self._preview = b""
        self._note = ""
        self._warnings: tuple[str, ...] = ()
        self._kept = KeptResults(log.warning)

    def listener(self, cluster: Cluster, job_id: str) -> ProgressListener:
        """Tells it what workers say of the job; of results that cannot be stored now the log speaks."""
        return ProgressListener(cluster, job_id, self.step, on_waits=self._kept.hear)

    def begin(self, record: JobRecord, warnings: Sequence[str] = ()) -> None:
        """The job is in the table; ``warnings`` are those of its plan, for who sees no log."""
        with self._lock:
            self._count = JobCount(record)
            self._warnings = tuple(warnings)

    def tiles_planned(self, tiles: Sequence[Sequence[int]]) -> None:
        """An upscale has tiles."""
        with self._lock:
            self._count.plan(tiles)

    def item_done(self, index: int, result: ItemResult) -> None:
        """An item has arrived."""
        with self._lock:
            self._count.take(index)
            if (step := self._steps.get(result.worker)) and step.index == index:
                del self._steps[result.worker]

    def items_here(self, indexes: Iterable[int]) -> None:
        """These are in the spool, whether or not their arrival has been told yet."""
        with self._lock:
            for index in indexes:
                self._count.take(index)
            self._steps = {worker: step for worker, step in self._steps.items() if step.index not in self._count.here}

    def step(self, step: Step) -> None:
        """A worker did some steps, or shows a preview."""
        with self._lock:
            if step.preview:
                self._preview = step.preview
            elif step.index not in self._count.here:
                self._steps[step.worker] = step

    def note(self, text: str) -> None:
        """A sentence for the user; empty takes the last one back."""
        with self._lock:
            self._note = text

    def look(self) -> Shown:
        """How it is now; a preview is given once."""
        with self._lock:
            preview, self._preview = self._preview, b""
            workers = [_words(name, step) for name, step in sorted(self._steps.items()) if step.maximum]
            more = [f"{len(workers) - _SHOWN_WORKERS} more"] if len(workers) > _SHOWN_WORKERS else []
            count = self._count.words()
            parts = [part for part in (count, *workers[:_SHOWN_WORKERS], *more, self._note, *self._warnings) if part]
            return Shown(self._count.done, self._count.total, "; ".join(parts), count, preview)


def _words(worker: str, step: Step) -> str:
    """``0/1`` would look like sampling, while models are being loaded."""
    return f"{worker} {step.value}/{step.maximum}" if step.value else f"{worker} begins"
