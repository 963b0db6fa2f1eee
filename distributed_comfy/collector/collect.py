"""The collector's loop: brings every result of a job home while the job runs, has its tiles made, and feeds its last stage.

Events say where to look; what is true is read from the table, at the start, after each outage (the next look) and every few seconds.
Per item: fetch into the spool, unlink the blobs, mark as fetched; a result whose blob is gone or damaged is reopened, so it runs again.
"""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.collector.assemble import BatchCheck
from distributed_comfy.collector.fed_item import FedItem
from distributed_comfy.collector.feed import Feeder, FeedPlan, plan_feed, plan_prepare_feed
from distributed_comfy.collector.gaps import missing_items
from distributed_comfy.collector.patience import Patience
from distributed_comfy.collector.spool import Spool, references
from distributed_comfy.collector.table import JobTable
from distributed_comfy.collector.tile_work import Places, TileLimits, TileWork
from distributed_comfy.errors import (
    BlobMissing,
    DistributedComfyError,
    FrameError,
    ItemsMissing,
    JobCancelled,
    JobFailed,
    JobLost,
    JobUnknown,
    from_wire,
)
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.records import ItemState, JobEvent, JobState
from distributed_comfy.transport.blobs import BlobStore

log = logging.getLogger(__name__)

LONG_AGO = float("-inf")
_PROBE = "0" * 12 + "#1"
"""Id of no blob, of the form that every master may ask for: whether the store answers is all that is asked."""


@dataclass(frozen=True)
class CollectorOptions:
    """How a collector works; the defaults suit every job."""

    on_item: Callable[[int, ItemResult], None] = lambda index, result: None
    """Called once per item in the loop's thread when it lies in the spool, in order of arrival; what lay there before comes first."""
    ensure_inputs: Callable[[], None] = lambda: None
    """Called every few seconds in a thread of its own: puts input files back that the blob store lost."""
    fetch_threads: int = 2
    """Items fetched at the same time: one waits for the disk while the other reads. More were slower (64 images of 12.6 MB, 4 cores)."""
    window_bytes: int = 256 * 2**20
    """What a last stage may leave unread in the blob store."""
    look_interval_s: float = 2.0
    """How often the table is read without an event."""
    inputs_interval_s: float = 5.0
    """How often `ensure_inputs` is called."""
    blob_away_s: float | None = None
    """How long the blob store may be away in one go; None: for ever."""
    tiles: TileLimits = field(default_factory=TileLimits)
    """Bounds of an upscale."""


class Collector:
    """Collects one job.

    Args:
        job: its record.
        table: the table of truth.
        store: where results lie.
        spool: where they go; open, and the job's.
        options: callbacks and limits.
    """

    def __init__(self, job: JobRecord, table: JobTable, store: BlobStore, spool: Spool, options: CollectorOptions) -> None:
        self._job = job
        self._table = table
        self._store = store
        self._spool = spool
        self._options = options
        self._stop = threading.Event()
        self._ask = Patience(f"job {job.job_id}", self._stop)
        self._load = Patience(f"job {job.job_id}: blobs", self._stop, options.blob_away_s)
        self._threads = ThreadPoolExecutor(options.fetch_threads + 2, thread_name_prefix="collect")
        self._wanted: dict[int, None] = {}
        """Items to look after, in order; more than a few futures at a time would only have to be searched through."""
        self._fetching: dict[int, Future[bool]] = {}
        self._lost: dict[int, str] = {}
        """Item -> the claim whose result could not be had."""
        self._told: set[int] = set()
        self._check = BatchCheck()
        self._states: dict[int, ItemState] = {}
        self._state = JobState("pending")
        self._looked_at = self._inputs_at = LONG_AGO
        self._inputs: Future[None] | None = None
        self._fed: dict[int, FedItem] = {}
        """The items that are fed while they run."""
        self._tiles: TileWork | None = None
        """The upscale, once its image is here."""
        self._generated = job.generated
        self._missing = self._generated
        """Generated items that are not here yet."""
        self._gone: set[int] = set()
        """Those of them that will never be, where the job goes on without them."""

    def run(self) -> None:
        """Collect until every item is in the spool, or known to be missing in a job that can do without it.

        Servers that cannot be reached are waited for.  Called once.

        Raises:
            JobFailed: an item failed for good; every finished one is in the spool.
            JobCancelled: likewise, after a cancel.
            JobLost: the table knows nothing of the job any more; every finished item that was fetched is in the spool.
            ItemsMissing: the job ended, and the table cannot account for these items.
            SizesDiffer, AudioDiffers: two items cannot be in one batch; the rest of the job is for the caller to cancel.
            OutputUnwritable: the spool's disk is full; nothing is lost, the unfetched results stay where they are.
            BlobsAway: the blob store was away for too long; what is finished and here is in the spool.
            FrameVersionUnknown, MessageVersionUnknown: workers run another version.
            CancelledError: `stop` was called.
        """
        with self._store.offered(self._job.job_id):
            try:
                self._collect()
            except JobUnknown as error:  # nobody takes a job out of the table while it has an owner
                raise JobLost(job_id=self._job.job_id) from error
            finally:
                self._end()

    def _collect(self) -> None:
        cursor, _ = self._ask.call(self._table.wait_events, self._job.job_id, "", 0.0)
        self._look()
        self._release_spooled()
        while not self._finished():
            if self._stop.is_set():
                raise CancelledError
            cursor, events = self._ask.call(self._table.wait_events, self._job.job_id, cursor, self._pause_s())
            self._heed(events)
            self._reap()
            self._fetch()
            self._go_on()

    @property
    def missing(self) -> dict[int, DistributedComfyError]:
        """Items that the job goes on without, and why each failed."""
        return {index: from_wire(self._states[index].error or {}) for index in sorted(self._gone)}

    @property
    def canvas(self) -> NDArray[np.float32] | None:
        """The upscaled image [F, H, W, C], once every tile is in it."""
        return self._tiles.canvas if self._tiles is not None and self._tiles.done else None

    def stop(self) -> None:
        """Let `run` end within a second or so, whatever the servers do; what lies in the spool stays there.  From any thread."""
        self._stop.set()

    def _finished(self) -> bool:
        """All home; raises where that will never be."""
        if self._wanted or self._fetching:
            return False
        known = len(self._gone) + (len(self._told) if self._tiles else sum(index < self._items for index in self._told))
        if known < self._items and self._state.ended and self._looked_at > LONG_AGO and not self._unfetched():
            self._raise_end()
        if known < self._items or (self._job.tiles is not None and self._tiles is None):
            return False
        return not self._gone or self._state.state == "done"

    def _pause_s(self) -> float:
        """How long to wait for events; fetches under way are waited for here, because nothing wakes the other wait for them."""
        if self._fetching or self._wanted:
            wait(self._fetching.values(), timeout=0.02, return_when=FIRST_COMPLETED)
            return 0.0
        return max(0.0, min(1.0, self._looked_at + self._options.look_interval_s - time.monotonic()))

    def _heed(self, events: list[JobEvent]) -> None:
        """Look where events point."""
        for event in events:
            if event.kind == "done" and 0 <= event.index < self._items and self._is_news(event.index, event.claim_id):
                self._wanted[event.index] = None
        fed_claimed = any(event.kind == "claimed" and event.index in self._fed for event in events)
        others = any(event.kind in ("failed", "released", "job") for event in events)
        if fed_claimed or others or time.monotonic() - self._looked_at >= self._options.look_interval_s:
            self._look()

    def _look(self) -> None:
        """Read the truth and act on it; the job first, so that the items of an ended job are final."""
        self._state = self._ask.call(self._table.job_state, self._job.job_id)
        self._states = self._ask.call(self._table.item_states, self._job.job_id)
        self._looked_at = time.monotonic()
        gone = set() if self._state.state in ("failed", "cancelled") else missing_items(self._job, self._states) - self._told
        for index in sorted(gone - self._gone):
            log.warning("job %s item %d failed for good; the job goes on without it", self._job.job_id, index)
        self._gone = gone
        if not self._state.ended:
            self._restore()
            if self._tiles is not None:
                self._tiles.look(self._states)
        self._wanted.update(dict.fromkeys(self._unfetched()))

    def _restore(self) -> None:
        """What is in the spool is done; a state server that crashed may have lost that with its last second.

        To run it again would be in vain for whatever is fed: the crops of a tile, for one, went when it was fetched.
        """
        over = ("done", "failed", "stopped")
        lost = [index for index, item in self._states.items() if item.state not in over and self._spool.has(index)]
        if lost:
            log.warning("job %s: the table forgot that %d item(s) are done; it is told again", self._job.job_id, len(lost))
            finished = [FinishedItem(index, self._spool.claim_id(index) or "", self._spool.result(index)) for index in lost]
            self._ask.call(self._table.restore, self._job.job_id, finished)
            self._states = self._ask.call(self._table.item_states, self._job.job_id)

    def _unfetched(self) -> list[int]:
        """Items that are done and not here, or not told of; in a job that has ended, those that were tried in vain do not count."""
        done = [(index, item.claim_id) for index, item in self._states.items() if item.state == "done"]
        lost = self._lost if self._state.ended else {}
        return [index for index, claim_id in done if self._is_news(index, claim_id) and claim_id != lost.get(index)]

    def _is_news(self, index: int, claim_id: str) -> bool:
        """Whether a done item is to be looked after; a part of this process may have put it into the spool itself, see `comfyui`."""
        return claim_id != self._spool.claim_id(index) or index not in self._told

    def _release_spooled(self) -> None:
        """Items that an earlier collector spooled, but may have died before it said so, are fetched without moving a byte."""
        for index in self._spool.items():
            self._wanted[index] = None
            self._tell(index)

    # -- fetching
    def _fetch(self) -> None:
        """Begin to fetch what is wanted, a few at a time; what is under way and wanted again follows itself."""
        for index in list(self._wanted):
            if len(self._fetching) >= 2 * self._options.fetch_threads:
                break
            if index not in self._fetching:
                self._wanted.pop(index)
                self._fetching[index] = self._threads.submit(self._bring_home, index)

    def _bring_home(self, index: int) -> bool:
        """In a thread: one item from blob store to spool; events are not trusted, so the claim is read from the table.

        Returns:
            False where the item could not be had.
        """
        found = self._ask.call(self._table.result, self._job.job_id, index)
        if found is None:
            self._lost[index] = self._states[index].claim_id if index in self._states else ""
            return False
        claim_id, result = found
        try:
            self._load.call(self._spool.add, index, claim_id, result, self._store)
        except (BlobMissing, FrameError) as error:
            if not error.retryable:
                raise
            log.warning("job %s item %d: %s; it runs again", self._job.job_id, index, error)
            self._ask.call(self._table.reopen, self._job.job_id, index, claim_id)
            self._lost[index] = claim_id
            return False
        self._load.call(self._store.unlink, [ref.blob for ref in references(result)])
        self._ask.call(self._table.mark_fetched, self._job.job_id, index, claim_id)
        return True

    def _reap(self) -> None:
        """Take in finished fetches."""
        for index in [index for index, future in self._fetching.items() if future.done()]:
            if not self._fetching.pop(index).result():
                self._looked_at = LONG_AGO  # the truth has changed, or the job is over without this item
                self._inputs_at = LONG_AGO  # what lost a result may have lost inputs, too
            self._tell(index)

    def _tell(self, index: int) -> None:
        if index not in self._told and self._spool.has(index):
            self._told.add(index)
            self._missing -= index < self._generated
            result = self._spool.result(index)
            log.info("job %s item %d: collected from %s", self._job.job_id, index, result.worker)
            for node_id in result.blocked:
                log.info("job %s item %d: nothing reached %s: blocked or skipped before it", self._job.job_id, index, node_id)
            self._options.on_item(index, result)
            if index < self._generated:
                self._check.add(index, result)
            elif self._tiles is not None and index >= self._job.first_tile:
                self._tiles.take(index)

    # -- what follows the generated items
    def _go_on(self) -> None:
        """What follows from what is here: input files, the image to upscale, its tiles, the last stage."""
        if self._inputs is not None and self._inputs.done():
            self._inputs.result()
            self._inputs = None
        if self._inputs is None and time.monotonic() - self._inputs_at >= self._options.inputs_interval_s:
            self._inputs_at = time.monotonic()
            self._inputs = self._threads.submit(self._load.call, self._ensure)
        if self._missing == len(self._gone) and self._is_prepared() and self._is_upscaled():
            self._finish_stage()

    def _ensure(self) -> None:
        self._store.exists([_PROBE])  # while it is away no worker ends an item, and nothing else would ask for it here
        self._options.ensure_inputs()
        if self._tiles is not None:
            self._tiles.ensure()

    def _is_prepared(self) -> bool:
        """Whether the image to upscale is here, or none is asked for; lets it be made."""
        index = self._job.prepare_index
        if index is None or self._spool.has(index):
            return True
        if index not in self._fed:
            self._fed[index] = self._fed_item(index, plan_prepare_feed(self._job, self._spool, self._store))
        self._fed[index].go_on(self._states.get(index, ItemState("blocked")))
        return False

    def _is_upscaled(self) -> bool:
        """Whether the canvas is complete, or there is none; lets tiles be made."""
        if self._job.tiles is None:
            return True
        if self._tiles is None:
            places = Places(self._table, self._store, self._spool)
            tiles = TileWork(self._job, places, self._load, self._options.tiles)
            tiles.begin(self._states)
            self._tiles = tiles
        self._tiles.go_on()
        return self._tiles.done

    def _finish_stage(self) -> None:
        """Unblock the last stage once, and again where the table forgot; feed whoever runs it."""
        index = self._job.last_index
        if index is None:
            return
        if index not in self._fed:
            canvas = self._tiles.canvas if self._tiles is not None else None
            self._fed[index] = self._fed_item(index, plan_feed(self._job, self._spool, self._store, canvas))
            log.info("job %s: %d of %d items are here, the last stage may start", self._job.job_id, len(self._told), self._items)
        self._fed[index].go_on(self._states.get(index, ItemState("blocked")))

    def _fed_item(self, index: int, plan: FeedPlan) -> FedItem:
        def unblock(feed_json: str) -> None:
            self._ask.call(self._table.unblock, self._job.job_id, [(index, feed_json)])
            if self._states.get(index, ItemState("blocked")).state == "blocked":
                self._states[index] = ItemState("pending")

        feeder = Feeder(plan, self._spool, self._store, window_bytes=self._options.window_bytes)
        return FedItem(plan, unblock, feeder, self._threads)

    @property
    def _items(self) -> int:
        """All items that are known by now."""
        return self._job.items + (self._tiles.items if self._tiles is not None else 0)

    # -- the end
    def _raise_end(self) -> None:
        """The error of a job that ended without all items here."""
        missing = [index for index in range(self._items) if index not in self._told and index not in self._gone]
        raise job_error(self._job.job_id, self._state, self._states) or ItemsMissing(job_id=self._job.job_id, indexes=missing)

    def _end(self) -> None:
        self._stop.set()
        for item in self._fed.values():
            item.end()
        self._threads.shutdown(wait=True, cancel_futures=True)


def job_error(job_id: str, state: JobState, items: Mapping[int, ItemState]) -> DistributedComfyError | None:
    """Why a job that has ended is not done; None where it is, or where the table does not say."""
    failed = sorted(index for index, item in items.items() if item.state == "failed" and item.error)
    if state.state == "failed" and failed:
        index = state.fatal if state.fatal in failed else failed[0]
        item = items[index]
        error = item.error or {}
        return JobFailed(job_id=job_id, index=index, worker=item.worker, last=str(from_wire(error)), error=error)
    if state.state == "failed" and state.error:
        return from_wire(state.error)
    if state.state == "cancelled":
        return JobCancelled(job_id=job_id, reason=state.reason or "no reason was given")
    return None
