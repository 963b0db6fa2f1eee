"""The cluster as seen from the node classes of one engine: sinks leave values here, sources fetch theirs from the blob store."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from distributed_comfy.engine.base import CapturedValue
from distributed_comfy.engine.feed_reader import read_feed
from distributed_comfy.engine.joining import joined_audio, joined_latents, joined_tensors
from distributed_comfy.errors import BlobMissing, DistributedComfyError
from distributed_comfy.messages import RunRequest, Value
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.frames import BytesLike
from distributed_comfy.transport.values import load_value, value_blobs
from distributed_comfy.workflow.classes import COLLECTOR_SLOTS, TENSOR_SLOTS

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.05
_JOIN: dict[str, Callable[[list[Any]], Any]] = {"audio": joined_audio, "latents": joined_latents}


def _nothing() -> None:
    pass


class GraphContext:
    """The `nodes.context.NodeContext` of all engines; an engine calls `begin` and `finish` round each run."""

    def __init__(self, blobs: BlobStore, *, feed_timeout_s: float, on_wait: Callable[[], None] = _nothing) -> None:
        """Args:
        blobs: where the feed of a last stage appears.
        feed_timeout_s: longest wait for one value of it.
        on_wait: called while waiting, as a sign of life.
        """
        self._blobs = blobs
        self._feed_timeout_s = feed_timeout_s
        self._on_wait = on_wait
        self._request: RunRequest | None = None
        self._check: Callable[[], None] = _nothing
        self._captures: list[CapturedValue] = []
        self._reached: set[str] = set()
        self._failure: DistributedComfyError | None = None

    # -- for the engine -------------------------------------------------------------------------------------------------
    def begin(self, request: RunRequest, *, check: Callable[[], None]) -> None:
        """A run starts.

        Args:
            request: its feed is what sources supply.
            check: raises the engine's own exception when the run is to stop; called while a source waits.
        """
        self._request, self._check = request, check
        self._captures, self._reached, self._failure = [], set(), None

    def finish(self) -> list[CapturedValue]:
        """A run is over, well or not: what its sinks took; nothing is kept."""
        captures, self._captures = self._captures, []
        self._request, self._check = None, _nothing
        return captures

    @property
    def reached(self) -> set[str]:
        """Ids of the sinks that the last run executed, with or without values."""
        return self._reached

    @property
    def failure(self) -> DistributedComfyError | None:
        """The error with which a source of the last run failed: an engine that sees only its text can raise this instead."""
        return self._failure

    def alive(self) -> None:
        """A sign of life of an engine that waits for somebody else, or comes to another node."""
        self._on_wait()

    def fed(self, node_id: str, slot: str) -> tuple[tuple[Value, ...], Iterator[Any]]:
        """The records of what a source supplies, and the values without torch, one by one; see `supply` for when they are there."""
        values = self._running().feed.get(node_id, {}).get(slot, ())
        return values, read_feed(self._blobs, values, wait_for=self._wait_for, as_torch=False)

    def hand_on(self, blob: str, send: Callable[[BytesLike], None]) -> bool:
        """Give a blob of the feed to somebody else, if it is there; unlinked then as by `supply`.

        Returns:
            Whether it was there.
        """
        self._check()
        if not self._blobs.exists([blob])[0]:
            self._on_wait()
            return False
        send(self._blobs.get(blob))
        if self._running().kind != "tile":
            self._blobs.unlink([blob])
        return True

    # -- for the node classes -------------------------------------------------------------------------------------------
    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        """See `nodes.context.NodeContext.capture`."""
        self._running()
        self._reached.add(node_id)
        self._captures += [CapturedValue(node_id, slot, position, value) for position, value in enumerate(values)]

    def supply(self, node_id: str, slot: str) -> list[Any]:
        """See `nodes.context.NodeContext.supply`; each blob is waited for and unlinked when it is read, but for those of a tile.

        A collector's values become one: audio is joined along time, all else along the batch.

        Raises:
            BlobMissing: a blob did not appear in time.
            SizesDiffer, BatchDiffers: values that cannot be joined.
        """
        values = self._running().feed.get(node_id, {}).get(slot, ())
        try:
            if slot not in COLLECTOR_SLOTS or not values:
                return list(self._loaded(values))
            if slot in TENSOR_SLOTS:
                return [joined_tensors(slot, values, self._loaded(values))]
            return [_JOIN[slot](list(self._loaded(values)))]
        except DistributedComfyError as error:
            self._failure = error
            raise

    def _running(self) -> RunRequest:
        assert self._request is not None, "a node of the cluster was called outside a run"
        return self._request

    def _loaded(self, values: tuple[Value, ...]) -> Iterator[Any]:
        if self._running().kind == "tile":  # whoever is next to try a tile reads the same blobs; the master unlinks them
            yield from map(self._load_tile_value, values)
        else:
            yield from read_feed(self._blobs, values, wait_for=self._wait_for)

    def _load_tile_value(self, value: Value) -> Any:
        """It lies there before the tile starts, so it is not asked for first; what the store lost is put back."""
        try:
            return load_value(self._blobs, value, as_torch=True)
        except BlobMissing:
            self._wait_for(value_blobs(value))
            return load_value(self._blobs, value, as_torch=True)

    def _wait_for(self, blobs: list[str]) -> None:
        """The master writes the blobs of a feed a few ahead of what is read."""
        deadline, pause_s = time.monotonic() + self._feed_timeout_s, _FIRST_WAIT_S
        while True:
            missing = [blob for blob, there in zip(blobs, self._blobs.exists(blobs), strict=True) if not there] if blobs else []
            if not missing:
                return
            if time.monotonic() >= deadline:
                raise BlobMissing(blob=missing[0])
            self._check()
            self._on_wait()
            time.sleep(pause_s)
            pause_s = min(_LONGEST_WAIT_S, pause_s * 1.5)
