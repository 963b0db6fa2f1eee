"""What sinks leave in the context of an engine and what sources get from it."""
from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from distributed_comfy.engine.context import GraphContext
from distributed_comfy.errors import BlobMissing, ItemInterrupted, SizesDiffer
from distributed_comfy.messages import ItemKind, LiteralValue, MappingValue, RunRequest, TensorRef, Value
from distributed_comfy.nodes.registry import node_classes
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import store_value, value_blobs


def begun(
    blobs: MemoryBlobStore, feed: dict[str, dict[str, tuple[Value, ...]]], *, timeout_s: float = 5.0, kind: ItemKind = "last"
) -> GraphContext:
    context = GraphContext(blobs, feed_timeout_s=timeout_s)
    request = RunRequest("c1", "j1", 0, kind, {}, (), {}, feed=feed)
    context.begin(request, check=lambda: None)
    return context


def stored(blobs: MemoryBlobStore, name: str, value: Any) -> Value:
    return store_value(blobs, name, value, job_id="j1", limit_bytes=2**30)


def test_a_sink_leaves_each_value_with_its_place_in_the_list() -> None:
    context = begun(MemoryBlobStore(), {})
    sink = node_classes(context)["DistributedSink"]()
    sink.capture(claim_id=["c1"], unique_id=["9"], images=["first", "second"], audio=["sound"])
    taken = context.finish()
    assert [(c.node_id, c.slot, c.list_index, c.value) for c in taken] == [
        ("9", "images", 0, "first"),
        ("9", "images", 1, "second"),
        ("9", "audio", 0, "sound"),
    ]
    assert context.reached == {"9"}
    assert context.finish() == []


def test_a_sink_that_got_nothing_was_reached_all_the_same() -> None:
    context = begun(MemoryBlobStore(), {})
    context.capture("9", "images", [])
    assert (context.finish(), context.reached) == ([], {"9"})


def test_a_collectors_images_become_one_batch_in_order_and_leave_no_blob() -> None:
    blobs = MemoryBlobStore()
    batches = [torch.rand(count, 4, 6, 3) for count in (2, 1, 3)]
    values = tuple(stored(blobs, f"v{number}", batch) for number, batch in enumerate(batches))
    context = begun(blobs, {"5": {"images": values}})
    (joined,) = context.supply("5", "images")
    assert torch.equal(joined, torch.cat(batches))
    assert blobs.exists([blob for value in values for blob in value_blobs(value)]) == [False] * 3


def test_a_collectors_audio_is_joined_along_time() -> None:
    blobs = MemoryBlobStore()
    sounds = [{"waveform": torch.rand(1, 2, length), "sample_rate": 8000} for length in (5, 7)]
    values = tuple(stored(blobs, f"v{number}", sound) for number, sound in enumerate(sounds))
    (joined,) = begun(blobs, {"5": {"audio": values}}).supply("5", "audio")
    assert joined["sample_rate"] == 8000
    assert torch.equal(joined["waveform"], torch.cat([sound["waveform"] for sound in sounds], dim=-1))


def test_an_edge_gives_its_values_one_by_one() -> None:
    blobs = MemoryBlobStore()
    latent = {"samples": torch.rand(1, 4, 2, 2), "batch_index": [0]}
    values = (LiteralValue(7), stored(blobs, "v", latent))
    number, loaded = begun(blobs, {"5~1": {"value": values}}).supply("5~1", "value")
    assert number == 7
    assert torch.equal(loaded["samples"], latent["samples"])


@pytest.mark.parametrize(("kind", "there"), [("tile", True), ("prepare", False), ("last", False)])
def test_what_a_tile_reads_stays_for_the_next_who_tries_it(kind: ItemKind, there: bool) -> None:
    blobs = MemoryBlobStore()
    crop, note = torch.rand(1, 4, 6, 3), {"samples": torch.rand(1, 4, 2, 2)}
    feed = {"5": {"images": (stored(blobs, "v", crop),), "value": (stored(blobs, "w", note),)}}
    for _ in range(2 if there else 1):
        context = begun(blobs, feed, kind=kind)
        assert torch.equal(context.supply("5", "images")[0], crop)
        assert torch.equal(context.supply("5", "value")[0]["samples"], note["samples"])
        context.finish()
    assert set(blobs.exists([blob for slot in feed["5"].values() for value in slot for blob in value_blobs(value)])) == {there}


def test_nothing_fed_gives_nothing() -> None:
    assert begun(MemoryBlobStore(), {}).supply("5", "images") == []


def test_images_that_come_late_are_waited_for_one_after_the_other() -> None:
    blobs = MemoryBlobStore()
    batches = [torch.full((1, 2, 2, 3), float(number)) for number in range(4)]
    values = tuple(stored(MemoryBlobStore(), f"v{number}", batch) for number, batch in enumerate(batches))  # ids only: not in `blobs` yet

    def feed_a_window_of_one() -> None:
        for number, batch in enumerate(batches):
            time.sleep(0.03)
            stored(blobs, f"v{number}", batch)
            while any(blobs.exists(value_blobs(values[number]))):
                time.sleep(0.001)

    feeder = threading.Thread(target=feed_a_window_of_one)
    feeder.start()
    (joined,) = begun(blobs, {"5": {"images": values}}).supply("5", "images")
    feeder.join(timeout=5)
    assert joined[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_blob_that_never_comes_is_named_and_remembered() -> None:
    value = TensorRef("gone#1", "float32", (1, 2, 2, 3), 48)
    context = begun(MemoryBlobStore(), {"5": {"images": (value,)}}, timeout_s=0.05)
    with pytest.raises(BlobMissing) as caught:
        context.supply("5", "images")
    assert (caught.value.blob, caught.value.retryable) == ("gone#1", True)
    assert context.failure is caught.value  # an engine that only sees its text can still raise the real one


def test_waiting_ends_when_the_run_is_interrupted_and_shows_life_until_then() -> None:
    signs: list[float] = []
    context = GraphContext(MemoryBlobStore(), feed_timeout_s=60, on_wait=lambda: signs.append(time.monotonic()))

    def check() -> None:
        if len(signs) >= 3:
            raise ItemInterrupted(item_id="j1-0")

    value = TensorRef("late#1", "float32", (1, 2, 2, 3), 48)
    context.begin(RunRequest("c1", "j1", 0, "last", {}, (), {}, feed={"5": {"images": (value,)}}), check=check)
    with pytest.raises(ItemInterrupted):
        context.supply("5", "images")
    assert len(signs) == 3


@pytest.mark.parametrize("slot", ["images", "audio"])
def test_what_cannot_be_joined_names_the_item(slot: str) -> None:
    blobs = MemoryBlobStore()
    odd: list[Any] = [torch.rand(1, 2, 2, 3), torch.rand(1, 2, 3, 3)]
    if slot == "audio":
        odd = [{"waveform": torch.rand(1, 2, 5), "sample_rate": rate} for rate in (8000, 44100)]
    values = tuple(stored(blobs, f"v{number}", value) for number, value in enumerate(odd))
    with pytest.raises(SizesDiffer) as caught:
        begun(blobs, {"5": {slot: values}}).supply("5", slot)
    assert caught.value.index == 1


def test_element_types_that_differ_are_widened_as_torch_does() -> None:
    blobs = MemoryBlobStore()
    values = tuple(stored(blobs, str(dtype), torch.ones(1, 2, 2, 3, dtype=dtype)) for dtype in (torch.float16, torch.float32))
    (joined,) = begun(blobs, {"5": {"images": values}}).supply("5", "images")
    assert joined.dtype is torch.float32


def test_all_tensors_of_a_mapping_are_unlinked_once_read() -> None:
    blobs = MemoryBlobStore()
    value = stored(blobs, "v", {"samples": torch.rand(1, 4, 2, 2), "noise_mask": torch.rand(1, 2, 2)})
    assert isinstance(value, MappingValue)
    begun(blobs, {"5~0": {"value": (value,)}}).supply("5~0", "value")
    assert not any(blobs.exists(value_blobs(value)))
