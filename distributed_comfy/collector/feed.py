"""Feeding the last stage (or the item that prepares an upscale): which values it gets, under which names, and the upload while it runs.

The spool's frames are sent again as they came, within a window of bytes: the engine unlinks what it has read, and that makes room for
the next.  So a large job never lies in the blob store whole.  A slot is a lane of its own, because only the engine knows in which order
the graph will ask for the slots: each lane may have one value unread whatever the others hold.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Union

import numpy as np
from numpy.typing import NDArray

from distributed_comfy import messages
from distributed_comfy.collector.assemble import placed_values
from distributed_comfy.collector.gaps import stand_ins
from distributed_comfy.collector.patience import Patience
from distributed_comfy.collector.spool import Spool
from distributed_comfy.errors import ConnectionLost
from distributed_comfy.messages import JobRecord, MappingValue, TensorRef, Value
from distributed_comfy.transport.blobs import BlobStore, parse_blob_id
from distributed_comfy.transport.encodings import Encoding
from distributed_comfy.transport.feed_names import Feed, bind_feed, feed_blob_name, feed_lanes
from distributed_comfy.transport.frames import BytesLike, encode_tensor, frame_size_bytes
from distributed_comfy.transport.travel import canvas_encoding
from distributed_comfy.transport.values import expected_ref

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.004
LONGEST_PAUSE_S = 0.1
"""How often to look whether the engine took something: at first, and after a while without."""


@dataclass(frozen=True)
class SpooledTensor:
    """A tensor of the feed that lies in the spool, as it came."""

    index: int
    ref: TensorRef

    def size_bytes(self, spool: Spool) -> int:
        """Length of its frame."""
        return spool.blob_bytes(self.index, self.ref.blob)

    def pieces(self, spool: Spool) -> list[BytesLike]:
        """Its frame."""
        return [spool.frame(self.index, self.ref)]


@dataclass(frozen=True, eq=False)
class CanvasFrame:
    """A tensor of the feed that is one frame of an upscaled canvas."""

    canvas: NDArray[np.float32]
    """[F, H, W, C], complete."""
    number: int
    encoding: Encoding = "plain"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return (1, *self.canvas.shape[1:])

    def size_bytes(self, spool: Spool) -> int:
        """Length of its frame."""
        return self.length

    def pieces(self, spool: Spool) -> list[BytesLike]:
        """Its frame, without a copy where it is plain."""
        return self._encoded if self.encoding != "plain" else self._encode()

    @cached_property
    def length(self) -> int:
        """Of the frame: known ahead for a plain one, another has to be made."""
        return frame_size_bytes("float32", self.shape) if self.encoding == "plain" else sum(map(len, self._encoded))

    @cached_property
    def _encoded(self) -> list[BytesLike]:
        return self._encode()

    def _encode(self) -> list[BytesLike]:
        limit_bytes = frame_size_bytes("float32", self.shape)
        return encode_tensor(self.canvas[self.number : self.number + 1], limit_bytes=limit_bytes, encoding=self.encoding)


FeedSource = Union[SpooledTensor, CanvasFrame]

@dataclass(frozen=True)
class FeedPlan:
    """What an item gets."""

    job_id: str
    feed: Feed
    """Blob ids hold a place for the claim, see `transport.feed_names`."""
    sources: tuple[FeedSource, ...]
    """For each tensor of the feed, in order, the one it copies."""

    @property
    def json(self) -> str:
        """`feed`, as `JobTable.unblock` keeps it with the job."""
        return messages.dump(self.feed)


class _Renamer:
    """Gives each tensor its place in the feed."""

    def __init__(self, job_id: str, spool: Spool, store: BlobStore) -> None:
        self.sources: list[FeedSource] = []
        self._job_id, self._spool, self._store = job_id, spool, store

    def add_frame(self, frame: CanvasFrame) -> TensorRef:
        """A frame of the canvas as a value of the feed."""
        name = feed_blob_name(self._job_id, len(self.sources))
        self.sources.append(frame)
        return replace(expected_ref(self._store, name, dtype="float32", shape=frame.shape), blob=self._store.blob_id(name, frame.length))

    def rename(self, index: int, value: Value) -> Value:
        """``value`` of item ``index`` with new blob ids."""
        if isinstance(value, MappingValue):
            return MappingValue({name: self.rename(index, entry) for name, entry in value.entries.items()})
        if not isinstance(value, TensorRef):
            return value
        name = feed_blob_name(self._job_id, len(self.sources))
        self.sources.append(SpooledTensor(index, value))
        return replace(value, blob=self._store.blob_id(name, self._spool.blob_bytes(index, value.blob)))


def plan_feed(job: JobRecord, spool: Spool, store: BlobStore, canvas: NDArray[np.float32] | None = None) -> FeedPlan:
    """The feed of a job's last stage; the same each time for the same spool.

    Each slot of a collector that the last stage uses gets every item's values in order; the engine joins them. An edge that crosses
    the cut gets item 0's values. A slot of which everything was blocked is empty. Items that the job does without are left out, or
    others stand in for them, as the collector says.

    Args:
        job: its record.
        spool: with all items but the last and those that the job does without.
        store: asked for blob ids only; nothing is uploaded.
        canvas: of the job's upscale, [F, H, W, C]; it must not change any more.
    """
    used = [collector.node_id for collector in job.collectors if collector.consumed]
    late = job.tiles.late_edges if job.tiles else ()
    renamer = _Renamer(job.job_id, spool, store)
    feed = _feed_of(job, spool, renamer, used, (*job.edges, *late))
    if job.tiles is not None and canvas is not None:
        encoding = canvas_encoding(job.frames, job.tiles.node_id)
        frames = (CanvasFrame(canvas, number, encoding) for number in range(len(canvas)))
        feed[job.tiles.node_id] = {"images": tuple(renamer.add_frame(frame) for frame in frames)}
    return FeedPlan(job.job_id, feed, tuple(renamer.sources))


def plan_prepare_feed(job: JobRecord, spool: Spool, store: BlobStore) -> FeedPlan:
    """The feed of the item that makes the image to upscale, as `plan_feed`."""
    assert job.tiles is not None and job.tiles.prepare is not None
    renamer = _Renamer(job.job_id, spool, store)
    feed = _feed_of(job, spool, renamer, job.tiles.prepare.collectors, job.tiles.prepare.edges)
    return FeedPlan(job.job_id, feed, tuple(renamer.sources))


def _feed_of(job: JobRecord, spool: Spool, renamer: _Renamer, collectors: Sequence[str], edges: Sequence[str]) -> Feed:
    """Every wired slot of these collectors, and these edges."""
    places = [
        (one.node_id, slot, one.on_missing == "repeat") for one in job.collectors if one.node_id in collectors for slot in one.slots
    ]
    feed: Feed = {}
    for node_id, slot, repeats in [*places, *((edge, "value", False) for edge in edges)]:
        values = placed_values(spool, node_id, slot, stand_ins(spool.items(), job.generated) if repeats else {})
        feed.setdefault(node_id, {})[slot] = tuple(renamer.rename(placed.index, placed.value) for placed in values)
    return feed


class Feeder:
    """Uploads a feed for one claim after the other; a claim that was abandoned leaves nothing behind.

    Args:
        plan: of the job.
        spool: where the tensors lie; also remembers how far a claim was fed, for a collector that starts again.
        store: where they go.
        window_bytes: what may lie there unread, beside one value per slot.
    """

    def __init__(self, plan: FeedPlan, spool: Spool, store: BlobStore, *, window_bytes: int) -> None:
        self._plan = plan
        self._spool = spool
        self._store = store
        self._window_bytes = window_bytes

    def run(self, claim_id: str, stop: threading.Event) -> bool:
        """Feed one claim; returns when the engine took everything or ``stop`` is set, and waits out a broken connection.

        Returns:
            True where the engine took everything.
        """
        patience = Patience(f"job {self._plan.job_id}: feeding an item", stop)
        lanes = self._lanes(claim_id)
        pause_s = FIRST_PAUSE_S
        try:
            patience.call(self._resume, claim_id, lanes)
            while not all(lane.empty for lane in lanes):
                moved = self._upload(claim_id, lanes, patience) or patience.call(self._look, lanes)
                pause_s = FIRST_PAUSE_S if moved else min(LONGEST_PAUSE_S, pause_s * 1.5)
                if stop.wait(0 if moved else pause_s):
                    raise CancelledError
        except CancelledError:
            self._abandon(claim_id, lanes)
            return False
        return True

    def _lanes(self, claim_id: str) -> list[_Lane]:
        sources = iter(self._plan.sources)
        lanes = feed_lanes(bind_feed(self._plan.feed, claim_id))
        return [_Lane([self._portion(refs, sources) for refs in values if refs]) for values in lanes]

    def _portion(self, refs: tuple[TensorRef, ...], sources: Iterator[FeedSource]) -> _Portion:
        mine = tuple(next(sources) for _ in refs)
        size_bytes = sum(source.size_bytes(self._spool) for source in mine)
        return _Portion(tuple(ref.blob for ref in refs), mine, size_bytes)

    def _upload(self, claim_id: str, lanes: list[_Lane], patience: Patience) -> bool:
        """Send the next value of every lane that may have one more; False if none may."""
        moved = False
        for lane in lanes:
            room = self._window_bytes - sum(lane.unread_bytes for lane in lanes)
            if lane.may_send(room):
                portion = lane.portions[lane.sent]
                for blob, source in zip(portion.blobs, portion.sources, strict=True):
                    patience.call(self._put, blob, source)
                lane.note_sent()
                self._spool.note_fed(claim_id, [lane.sent for lane in lanes])
                moved = True
        return moved

    def _put(self, blob: str, source: FeedSource) -> None:
        name, _ = parse_blob_id(blob)
        self._store.put(name, source.pieces(self._spool), job_id=self._plan.job_id)

    def _look(self, lanes: list[_Lane]) -> bool:
        """See what the engine took; False if nothing."""
        blobs = [blob for lane in lanes for blob in lane.unread_blobs()]
        there = {blob for blob, found in zip(blobs, self._store.exists(blobs), strict=True) if found} if blobs else set()
        left_over = [blob for lane in lanes for blob in lane.note_there(there)]
        self._store.unlink(left_over)
        return len(there) - len(left_over) < len(blobs)

    def _resume(self, claim_id: str, lanes: list[_Lane]) -> None:
        """Go on where an earlier collector of the same claim died."""
        for lane, count in zip(lanes, self._spool.fed(claim_id), strict=False):
            lane.note_resumed(count)
        self._look(lanes)

    def _abandon(self, claim_id: str, lanes: list[_Lane]) -> None:
        """Unlink what nobody will read, and remember where to go on if the same claim is fed again."""
        blobs = [blob for lane in lanes for blob in lane.unread_blobs()]
        self._spool.note_fed(claim_id, [lane.taken for lane in lanes])
        try:
            self._store.unlink(blobs)
        except ConnectionLost as error:
            log.warning("job %s: left %d blobs of an abandoned feed to expire: %s", self._plan.job_id, len(blobs), error)


@dataclass(frozen=True)
class _Portion:
    """One value of a lane: all its tensors, because a reader waits for all of them."""

    blobs: tuple[str, ...]
    sources: tuple[FeedSource, ...]
    size_bytes: int


class _Lane:
    """One slot's values: taken, then unread, then still to send."""

    def __init__(self, portions: list[_Portion]) -> None:
        self.portions = portions
        self.taken = 0
        """The engine has read so many."""
        self.sent = 0
        """So many were uploaded."""
        self._doubtful = -1

    @property
    def empty(self) -> bool:
        """Everything was taken."""
        return self.taken == len(self.portions)

    @property
    def unread_bytes(self) -> int:
        """What counts of the bytes that lie unread."""
        unread = range(self.taken, self.sent)
        return sum(self.portions[position].size_bytes for position in unread if position != self._doubtful)

    def may_send(self, room_bytes: int) -> bool:
        """Whether the next value fits, or is the only one of this lane."""
        if self.sent == len(self.portions):
            return False
        return not self.unread_bytes or self.portions[self.sent].size_bytes <= room_bytes

    def note_sent(self) -> None:
        """The next value was uploaded."""
        self.sent += 1

    def note_resumed(self, count: int) -> None:
        """``count`` values were uploaded before, and perhaps one more, noted nowhere.

        That one may have been read already and will then never be again, so it must not keep the next one out.
        """
        self.sent = min(count, len(self.portions))
        self._doubtful = self.sent

    def unread_blobs(self) -> list[str]:
        """Blobs that may still lie there."""
        return [blob for portion in self.portions[self.taken : self.sent] for blob in portion.blobs]

    def note_there(self, there: set[str]) -> list[str]:
        """Only these are left; returns those of values before one that was taken, which nobody will read.

        A lane is read in order, so a value that is gone, in whole or in part, was read, and so were all before it.
        """
        before = self.taken
        for position in range(self.taken, self.sent):
            if not there.issuperset(self.portions[position].blobs):
                self.taken = position + 1
        return [blob for portion in self.portions[before : self.taken] for blob in portion.blobs if blob in there]
