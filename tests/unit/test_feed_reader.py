"""The reader of a feed: in order, a few small values ahead, and unlinked in order whatever came first."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from distributed_comfy.engine import feed_reader
from distributed_comfy.engine.feed_reader import read_feed
from distributed_comfy.messages import LiteralValue, Value
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import store_value, value_blobs

WAY_S = 0.02


class FarStore(MemoryBlobStore):
    """Every call takes its way there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.unlinked: list[str] = []
        self.reading = self.most = 0
        self._counting = threading.Lock()

    def exists(self, blobs: Sequence[str]) -> list[bool]:
        time.sleep(WAY_S)
        return super().exists(blobs)

    def get(self, blob: str) -> memoryview:
        with self._counting:
            self.reading += 1
            self.most = max(self.most, self.reading)
        time.sleep(WAY_S)
        with self._counting:
            self.reading -= 1
        return super().get(blob)

    def unlink(self, blobs: Iterable[str]) -> None:
        time.sleep(WAY_S)
        self.unlinked += (blobs := list(blobs))
        super().unlink(blobs)


def stored(store: FarStore, count: int) -> list[Value]:
    arrays = (np.full((1, 2, 2, 3), number, np.float32) for number in range(count))
    return [store_value(store, f"v{number}", array, job_id="j", limit_bytes=2**20) for number, array in enumerate(arrays)]


def read(store: FarStore, values: Sequence[Value]) -> list[float]:
    def wait_for(blobs: list[str]) -> None:
        while not all(store.exists(blobs)):
            time.sleep(0.001)

    return [float(one[0, 0, 0, 0]) for one in read_feed(store, values, wait_for=wait_for)]


def test_values_come_in_order_and_every_blob_is_unlinked_in_order() -> None:
    store = FarStore()
    values = stored(store, 8)
    assert read(store, values) == list(range(8))
    assert store.unlinked == [blob for value in values for blob in value_blobs(value)]


def test_the_ways_of_several_values_are_gone_together() -> None:
    store = FarStore()
    values = stored(store, 20)
    began = time.monotonic()
    read(store, values)
    assert store.most >= 2
    assert time.monotonic() - began < 3 * 20 * WAY_S, "as long as one after the other"


def test_large_values_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_reader, "_AHEAD_BYTES", 47)
    store = FarStore()
    assert read(store, stored(store, 4)) == [0, 1, 2, 3]
    assert store.most == 1


def test_a_value_that_is_not_there_yet_is_waited_for_in_its_place() -> None:
    store = FarStore()
    values = stored(store, 4)
    late = store.get(value_blobs(values[1])[0])
    MemoryBlobStore.unlink(store, value_blobs(values[1]))
    threading.Timer(5 * WAY_S, lambda: store.put("v1", [late])).start()
    assert read(store, values) == [0, 1, 2, 3]
    assert store.unlinked == [blob for value in values for blob in value_blobs(value)]


def test_what_is_no_tensor_needs_no_store() -> None:
    values: list[Value] = [LiteralValue(7), LiteralValue("x")]
    assert list(read_feed(FarStore(), values, wait_for=lambda _: None)) == [7, "x"]


def test_who_stops_half_way_leaves_the_rest_unread_and_linked() -> None:
    store = FarStore()
    values = stored(store, 6)
    reading: Any = read_feed(store, values, wait_for=lambda _: None)
    next(reading)
    reading.close()
    assert store.unlinked == value_blobs(values[0])
